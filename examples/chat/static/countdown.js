// Counts down what the page says in words, and asks the server for the page again when the time is up.
"use strict";

const loaded = Date.now();
const timer = document.querySelector("[role=timer]");
const warning = document.getElementById("warning");

function secondsLeft(element) {
  // By the clock and not by counting: a computer that slept did not count.
  return Number(element.dataset.secondsLeft) - (Date.now() - loaded) / 1000;
}

function ask() {
  // Not reload(), which would send a form again if the page was the answer to one.
  location.replace(location.pathname);
}

function inWords(seconds) {
  const minutes = Math.round(seconds / 60);
  if (seconds <= 0) return "ended";
  return seconds < 60 ? "less than a minute left" : `about ${minutes} ${minutes === 1 ? "minute" : "minutes"} left`;
}

function show() {
  for (const element of document.querySelectorAll("nav [data-seconds-left]")) element.textContent = inWords(secondsLeft(element));
  if (!timer) return;
  const seconds = secondsLeft(timer);
  // The server ends a chat when the time is over and not before: let it be over.
  if (seconds < -0.5) return ask();
  const whole = Math.max(0, Math.ceil(seconds));
  timer.textContent = `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")} left`;
  const gone = Math.min(1, Math.max(0, 1 - seconds / Number(timer.dataset.timeout)));
  document.querySelector(".left [data-burning]").setAttribute("transform", `translate(0 ${(27 * gone).toFixed(1)})`);
  timer.closest(".left").classList.toggle("soon", seconds <= 60);
  // A timer is not read aloud; this is, once.
  if (seconds <= 60 && !warning.textContent) warning.textContent = "Less than a minute left. Say anything to go on.";
  setTimeout(show, 1000);
}

for (const time of document.querySelectorAll("time")) {
  time.textContent = new Date(time.dateTime).toLocaleTimeString([], { hour: "numeric", minute: "2-digit" });
}
// A page that a browser kept for going back to is out of date.
addEventListener("pageshow", (event) => event.persisted && ask());
show();
if (!timer) setInterval(show, 1000);
