() => {
  // Gradio draws images as buttons without a name, and headings of messages as buttons around a button.
  const name = () => {
    for (const button of document.querySelectorAll(".image-container > button:not([aria-label])")) {
      const label = button.closest(".block")?.querySelector("[data-testid='block-label']")?.innerText.trim();
      button.setAttribute("aria-label", label || "Image in the conversation");
    }
    for (const header of document.querySelectorAll(".toast-header[role='button']")) {
      header.removeAttribute("role");
      header.removeAttribute("tabindex");
    }
  };
  name();
  new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
}
