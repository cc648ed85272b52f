// The conversation on the page. Gradio runs this with `element`, `props`, `trigger`, `server` and `watch`.
//
// props.value: {turns: [{role: "user" | "agent", text, note, pieces: [[text, probability], ...]}], busy, notice, speaker}
// props.openers: example messages; props.limit: the maximum number of characters of a message; props.composer: whether
// there is a box for messages; props.acts: whether `server.read_act([previous, reply])` is available.
//
// Messages and replies are not trusted: they become text nodes, never markup.

const list = element.querySelector(".talk-list");
const foot = element.querySelector(".talk-foot");
let drawn = []; // for each turn, the JSON from which it was last drawn
let waiting = false; // a request was sent and has not been answered yet
let stopping = false; // Stop was pressed, perhaps before the server started to write the reply
let box, send, notice, actions;

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function button(label, className, onClick) {
  const node = make("button", `talk-button ${className}`, label);
  node.type = "button";
  node.addEventListener("click", onClick);
  return node;
}

function busy() {
  return waiting || Boolean(props.value.busy);
}

function say(data) {
  if (busy()) return;
  waiting = true;
  trigger("say", data);
  draw();
}

function stop() {
  stopping = true;
  trigger("halt");
}

function submit() {
  const text = box.value.trim().slice(0, props.limit);
  if (!text || busy()) return;
  box.value = "";
  count();
  say({ do: "send", text });
  box.focus();
}

function count() {
  const over = box.value.length - props.limit;
  if (box.value.length > 0.8 * props.limit) {
    notice.textContent =
      over > 0
        ? `${over} characters too many: only the first ${props.limit} will be sent.`
        : `${-over} characters left.`;
  } else notice.textContent = props.value.notice || "";
}

function heat(pieces) {
  const line = make("p", "talk-heat");
  for (const [text, probability] of pieces) {
    const token = make("span", "talk-token");
    token.style.setProperty("--likely", probability);
    token.append(make("bdi", "", text), make("small", "", `${Math.round(100 * probability)}%`));
    line.append(token, " ");
  }
  return line;
}

function details(turn, previous) {
  const node = make("details", "talk-details");
  node.append(make("summary", "", "Look closer"));
  node.append(make("p", "talk-hint", "How likely the model found each token:"));
  node.append(heat(turn.pieces));
  if (props.acts) {
    const act = make("p", "talk-act", "Reading the act…");
    node.append(act);
    node.addEventListener("toggle", async () => {
      if (!node.open || act.dataset.asked) return;
      act.dataset.asked = "yes";
      act.textContent = await server.read_act([previous, turn.text]);
    });
  }
  return node;
}

function drawTurn(turn, previous, writing) {
  const node = make("li", `talk-turn talk-${turn.role}`);
  node.append(make("span", "talk-who", turn.role === "user" ? "You" : props.value.speaker || "Agent"));
  const text = make("div", "talk-text", turn.text);
  text.dir = "auto";
  if (writing) text.classList.add("talk-writing");
  node.append(text);
  if (turn.note) node.append(make("p", "talk-note", turn.note));
  if (turn.pieces && turn.pieces.length) node.append(details(turn, previous));
  return node;
}

function edit() {
  const { turns } = props.value;
  const last = turns.findLastIndex((turn) => turn.role === "user");
  const node = list.children[last];
  const area = make("textarea", "talk-box");
  area.value = turns[last].text;
  area.maxLength = props.limit;
  area.rows = 2;
  area.setAttribute("aria-label", "Edit your last message");
  const save = () => area.value.trim() && say({ do: "edit", text: area.value.trim() });
  const leave = () => {
    drawn[last] = undefined;
    draw();
    box.focus();
  };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      save();
    } else if (event.key === "Escape") leave();
  });
  const row = make("div", "talk-row");
  row.append(button("Send again", "talk-main", save), button("Cancel", "", leave));
  node.querySelector(".talk-text").replaceWith(area, row);
  area.focus();
}

function drawEmpty() {
  const node = make("li", "talk-empty");
  node.append(make("p", "", props.empty));
  const row = make("div", "talk-row");
  for (const opener of props.openers || []) {
    row.append(button(opener, "talk-opener", () => say({ do: "send", text: opener })));
  }
  node.append(row);
  return node;
}

function draw() {
  const { turns } = props.value;
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 80;
  list.setAttribute("aria-busy", busy());
  if (!turns.length) {
    list.replaceChildren(drawEmpty());
    drawn = [];
  } else {
    if (!drawn.length) list.replaceChildren();
    while (drawn.length > turns.length) {
      drawn.pop();
      list.lastChild.remove();
    }
    turns.forEach((turn, i) => {
      const writing = Boolean(props.value.busy) && i === turns.length - 1;
      const json = JSON.stringify([turn, writing, props.value.speaker]);
      if (drawn[i] === json) return;
      const node = drawTurn(turn, i ? turns[i - 1].text : "", writing);
      if (list.children[i]) list.children[i].replaceWith(node);
      else list.append(node);
      drawn[i] = json;
    });
  }
  if (atEnd || busy()) list.scrollTop = list.scrollHeight;
  if (!props.composer) return;
  actions.hidden = busy() || !turns.length;
  send.textContent = busy() ? "Stop" : "Send";
  count();
}

if (props.composer) {
  actions = make("div", "talk-row talk-actions");
  actions.setAttribute("role", "group");
  actions.setAttribute("aria-label", "Conversation");
  actions.append(
    button("Retry", "", () => say({ do: "retry" })),
    button("Edit", "", edit),
    button("Undo", "", () => say({ do: "undo" })),
    button("Reset", "", () => say({ do: "reset" })),
  );
  box = make("textarea", "talk-box");
  box.rows = 2;
  box.placeholder = "Say something";
  box.title = "Enter sends, Shift+Enter starts a new line, Escape stops a reply";
  box.setAttribute("aria-label", "Your message");
  box.addEventListener("input", count);
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      submit();
    }
  });
  send = button("Send", "talk-main", () => (busy() ? stop() : submit()));
  notice = make("p", "talk-notice");
  notice.setAttribute("role", "status");
  const row = make("div", "talk-row talk-composer");
  row.append(box, send);
  foot.append(actions, row, notice);
  element.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && busy()) stop();
  });
}

watch("value", () => {
  waiting = false;
  stopping = stopping && busy();
  if (stopping) trigger("halt");
  draw();
});
draw();
