// Copies only the commands of a console block, without prompts, output and comments: an interactive
// zsh takes a comment for arguments.
document.addEventListener(
  "click",
  (event) => {
    const button = event.target.closest("[data-clipboard-target]");
    if (!button) return;
    const code = document.querySelector(button.dataset.clipboardTarget);
    if (!code || !code.closest(".language-console")) return;
    const commands = commandsOf(code.textContent);
    if (commands) button.dataset.clipboardText = commands;
  },
  true, // before the theme's own listener, which reads the attribute
);

function commandsOf(text) {
  const lines = text.split("\n");
  const prompt = lines.some((line) => line.startsWith("$ ")) ? "$ " : "# ";
  const commands = [];
  let goesOn = false; // after a backslash
  let end = null; // the last line of a here-document
  for (const line of lines) {
    const starts = line.startsWith(prompt);
    if (!starts && !goesOn && end === null) continue;
    const typed = starts && !goesOn && end === null ? line.slice(2) : line;
    const command = end === null ? typed.replace(/\s{2,}# .*$/, "") : typed;
    commands.push(command);
    if (end !== null) {
      if (command === end) end = null;
      continue;
    }
    const document = command.match(/<<'?(\w+)'?$/);
    if (document) end = document[1];
    goesOn = command.endsWith("\\");
  }
  return commands.join("\n");
}
