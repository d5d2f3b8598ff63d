/* Crop frame geometry: {left, top, right, bottom} as fractions of a picture's sides. Does not touch the DOM. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});

  const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

  /** The frame moved by shares, kept inside the picture. */
  const moveFrame = (frame, right, down) => {
    const x = clamp(right, -frame.left, 1 - frame.right);
    const y = clamp(down, -frame.top, 1 - frame.bottom);
    return { left: frame.left + x, top: frame.top + y, right: frame.right + x, bottom: frame.bottom + y };
  };
  /** The frame with the sides of `handle` at x, y; `shape` (width / height in shares, 0: free) is kept; `least`: smallest sides. */
  const resizeFrame = (frame, handle, x, y, shape, minimum) => {
    const next = { ...frame };
    if (handle.includes("w")) next.left = clamp(x, 0, frame.right - minimum.width);
    if (handle.includes("e")) next.right = clamp(x, frame.left + minimum.width, 1);
    if (handle.includes("n")) next.top = clamp(y, 0, frame.bottom - minimum.height);
    if (handle.includes("s")) next.bottom = clamp(y, frame.top + minimum.height, 1);
    return shape ? keepShape(next, handle, shape, minimum) : next;
  };
  const keepShape = (frame, handle, shape, minimum) => {
    let width = handle === "n" || handle === "s" ? (frame.bottom - frame.top) * shape : frame.right - frame.left;
    width = Math.max(width, minimum.width, minimum.height * shape);
    const middle = { x: (frame.left + frame.right) / 2, y: (frame.top + frame.bottom) / 2 };
    const room = {
      x: handle.includes("w") ? frame.right : handle.includes("e") ? 1 - frame.left : 2 * Math.min(middle.x, 1 - middle.x),
      y: handle.includes("n") ? frame.bottom : handle.includes("s") ? 1 - frame.top : 2 * Math.min(middle.y, 1 - middle.y),
    };
    width = Math.min(width, room.x, room.y * shape);
    const height = width / shape;
    const left = handle.includes("w") ? frame.right - width : handle.includes("e") ? frame.left : middle.x - width / 2;
    const top = handle.includes("n") ? frame.bottom - height : handle.includes("s") ? frame.top : middle.y - height / 2;
    return { left, top, right: left + width, bottom: top + height };
  };
  /** The largest frame of that shape inside another, in its middle. */
  const fitShape = (frame, shape) => {
    const width = Math.min(frame.right - frame.left, (frame.bottom - frame.top) * shape);
    const left = (frame.left + frame.right - width) / 2;
    const top = (frame.top + frame.bottom - width / shape) / 2;
    return { left, top, right: left + width, bottom: top + width / shape };
  };

  /** The bucket size for a crop of this many pixels, by the server's rule: its own size, else the nearest shape. */
  const sizeFor = (picture, width, height) => {
    const sizes = ((LT.cache.pictures || {}).shapes || [])[picture.dataset || 0] || [];
    const own = sizes.find(([wide, high]) => wide === width && high === height);
    const off = ([wide, high]) => Math.abs(wide / high - width / height);
    return own || sizes.reduce((best, size) => (best === null || off(size) < off(best) ? size : best), null);
  };

  LT.frames = { clamp, moved: moveFrame, sized: resizeFrame, inShape: keepShape, within: fitShape, sizeFor };
})();
