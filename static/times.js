/** Spans of time in words. */
const AGO = new Intl.RelativeTimeFormat(undefined, { numeric: "auto", style: "long" });

export function ago(date) {
  const seconds = Math.max(0, Math.round((Date.now() - date) / 1000)); // never the future, when two clocks differ
  if (seconds < 2) return "just now";
  if (seconds < 60) return AGO.format(-seconds, "second");
  if (seconds < 3600) return AGO.format(-Math.floor(seconds / 60), "minute");
  if (seconds < 86_400) return AGO.format(-Math.floor(seconds / 3600), "hour");
  return AGO.format(-Math.floor(seconds / 86_400), "day");
}

export function duration(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d ${Math.floor((seconds % 86_400) / 3600)} h`;
}
