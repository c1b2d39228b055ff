// One clock for all videos of the page: they play, stop and are scrubbed together.
(() => {
  const player = document.querySelector('.player');
  const videos = [...document.querySelectorAll('video')];
  if (!player || !videos.length) return;
  const button = player.querySelector('button'), slider = player.querySelector('input');
  const readout = player.querySelector('output'), speed = player.querySelector('select');
  const frames = +player.dataset.frames, fps = +player.dataset.fps, length = frames / fps;
  const clips = [...document.querySelectorAll('.clip')].map(e => ({
    element: e, cells: [...e.querySelectorAll('.time i')], given: (e.dataset.known || '').split(',').filter(Boolean).map(Number),
  }));
  const seen = new Set();
  let playing = !matchMedia('(prefers-reduced-motion: reduce)').matches, at = 0, before = null, shown = -1;

  for (const v of videos) {           // blobs: some phones do not play data: URIs
    const [head, data] = v.src.split(',');
    const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
    v.src = URL.createObjectURL(new Blob([bytes], {type: head.slice(5).split(';')[0]}));
    v.controls = v.loop = false;
  }
  const watch = new IntersectionObserver(entries => entries.forEach(e => {
    e.isIntersecting ? seen.add(e.target) : (seen.delete(e.target), e.target.pause());
  }), {rootMargin: '120px'});         // only what is on the screen decodes
  videos.forEach(v => watch.observe(v));
  player.hidden = false;

  const mark = frame => {
    if (frame === shown) return;
    shown = frame;
    slider.value = frame;
    readout.textContent = `frame ${frame} of 0–${frames - 1}`;
    for (const c of clips) {
      c.cells.forEach((cell, i) => cell.classList.toggle('now', i === frame));
      c.element.classList.toggle('at-given', c.given.includes(frame));
    }
  };
  const seek = () => seen.forEach(v => { v.pause(); v.currentTime = Math.min(at + 0.5 / fps, (v.duration || length) - 0.01); });
  const tick = now => {
    const passed = before === null ? 0 : Math.min(0.1, (now - before) / 1000);
    before = now;
    if (playing) {
      at += passed * speed.value;
      const wrapped = at >= length;
      if (wrapped) at = 0;
      for (const v of seen) {
        v.playbackRate = speed.value;
        if (wrapped || Math.abs(v.currentTime - at) > 1.2 / fps) v.currentTime = Math.min(at, (v.duration || length) - 0.01);
        if (v.paused && (wrapped || !v.ended)) v.play().catch(() => {});
      }
      mark(Math.min(frames - 1, Math.floor(at * fps)));
    }
    requestAnimationFrame(tick);
  };
  const play = on => { playing = on; button.textContent = on ? '❚❚ Pause' : '▶ Play'; if (!on) seek(); };
  button.onclick = () => play(!playing);
  slider.oninput = () => { at = slider.value / fps; play(false); mark(+slider.value); };
  addEventListener('keydown', e => {
    if (/INPUT|SELECT|BUTTON|TEXTAREA/.test(e.target.tagName)) return;
    if (e.key === ' ') { e.preventDefault(); play(!playing); }
    const step = {ArrowLeft: -1, ArrowRight: 1}[e.key];
    if (step) { slider.value = +slider.value + step; slider.oninput(); }
  });
  play(playing);
  requestAnimationFrame(tick);
})();
