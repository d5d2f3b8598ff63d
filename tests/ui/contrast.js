// Texts on the page whose colour stands out less than 4 : 1 from the ground behind them (WCAG's relative luminance).
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const found = rgb(getComputedStyle(element).backgroundColor);
      if (found[3] > 250) return found;
    }
    return [255, 255, 255, 255];
  };
  const linear = (part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const light = (colour) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, index) => sum + weight * linear(colour[index] / 255), 0);
  const faint = [];
  const walk = document.createTreeWalker(document.querySelector(".lt-app"), NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !element.checkVisibility() || element.closest("svg, :disabled")) continue;
    const [high, low] = [light(rgb(getComputedStyle(element).color)), light(ground(element))].sort((one, other) => other - one);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4) faint.push(`${walk.currentNode.textContent} ${ratio.toFixed(2)}`);
  }
  return faint;
}
