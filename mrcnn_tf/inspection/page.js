"use strict";
// One switch for all pictures; each has its own, which works without this.
const all = document.getElementById("all-pictures");
if (all) {
  all.hidden = false;
  all.addEventListener("change", (event) => {
    for (const input of document.querySelectorAll(`.picture input[value="${event.target.value}"]`)) {
      input.checked = true;
    }
  });
}
