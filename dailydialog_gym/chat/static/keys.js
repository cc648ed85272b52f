// What Gradio's components lack: Escape stops a reply, 1, 2, 0 and 3 vote, Tab reaches the replies.
() => {
  document.addEventListener("keydown", (event) => {
    const press = (selector) => [...document.querySelectorAll(selector)].find((b) => b.offsetParent)?.click();
    if (event.key === "Escape") press(".stop-button");
    if ("1203".includes(event.key) && !event.target.closest("input, textarea:enabled")) press(`#vote-${event.key}`);
  });
  const mend = () => {
    document.querySelector(".examples[role=list]")?.setAttribute("role", "group"); // its children are no list items
    for (const reply of document.querySelectorAll(".closable [data-testid=bot]:not([tabindex])")) {
      reply.tabIndex = 0;
      reply.role = "button";
      reply.title = "See its tokens";
    }
  };
  new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
  mend();
}
