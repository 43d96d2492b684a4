// Times come from the server in UTC; a reader sees their own clock.
function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const date = new Date(time.dateTime);
    const isToday = date.toDateString() === new Date().toDateString();
    const clock = { hour: "2-digit", minute: "2-digit" };
    time.textContent = isToday
      ? date.toLocaleTimeString([], clock)
      : date.toLocaleString([], { year: "numeric", month: "2-digit", day: "2-digit", ...clock });
    time.title = date.toLocaleString();
  }
}
localTimes(document);
