// Keep the players of the stage together: they are started at once and the others follow the first one.
(() => {
  const FAR = 0.12; // seconds apart from which a player jumps; below, it runs faster or slower
  const GAIN = 4; // change of the rate for each second of distance
  const SPEEDS = [1, 0.5, 0.25];
  let playing = false;
  let restarting = false;
  let speed = 1;

  const players = () => [...document.querySelectorAll("#nrg-stage video")].filter((v) => v.readyState > 1);
  const control = (name) => document.querySelector(`[data-nrg="${name}"]`);

  function show() {
    const button = control("play");
    if (!button) return;
    button.textContent = playing ? "Pause" : "Play both";
    button.setAttribute("aria-pressed", String(playing));
  }

  function toggle(on) {
    playing = on;
    if (!on) players().forEach((video) => video.pause());
    show();
  }

  const moved = (video, time) =>
    new Promise((done) => {
      video.addEventListener("seeked", done, { once: true });
      setTimeout(done, 300); // a video that was just replaced never answers
      video.currentTime = time;
    });

  async function restart(all) {
    restarting = true;
    all.forEach((video) => video.pause());
    await Promise.all(all.map((video) => moved(video, 0)));
    restarting = false;
  }

  function follow(first, video) {
    const behind = first.currentTime - video.currentTime;
    if (Math.abs(behind) > FAR && !video.seeking) video.currentTime = first.currentTime;
    video.playbackRate = speed * (1 + Math.max(-0.5, Math.min(0.5, GAIN * behind)));
  }

  function tick() {
    const all = players();
    if (playing && all.length && !restarting) {
      const first = all[0];
      if (first.ended) {
        restart(all);
      } else {
        first.playbackRate = speed;
        all.slice(1).forEach((video) => follow(first, video));
        all.filter((video) => video.paused && !video.ended).forEach((video) => video.play().catch(() => {}));
        control("seek").value = (1000 * first.currentTime) / first.duration || 0;
      }
    }
    requestAnimationFrame(tick);
  }

  function seek(share) {
    toggle(false);
    players().forEach((video) => (video.currentTime = share * Math.max(0, video.duration - 0.01)));
  }

  document.addEventListener("click", (event) => {
    const name = event.target.closest?.("[data-nrg]")?.dataset.nrg;
    if (name === "play") toggle(!playing);
    if (name === "speed") {
      speed = SPEEDS[(SPEEDS.indexOf(speed) + 1) % SPEEDS.length];
      event.target.textContent = `${speed}x`;
    }
    // On a phone the results are below the settings.
    if (event.target.closest?.("#nrg-go") && window.innerWidth < 800) {
      document.getElementById("nrg-status").scrollIntoView({ behavior: "smooth" });
    }
  });
  document.addEventListener("input", (event) => {
    if (event.target.dataset?.nrg === "seek") seek(event.target.value / 1000);
  });

  // A clip that arrives plays by itself, unless the visitor asked for less motion.
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  new MutationObserver((changes) => {
    const arrived = changes.some((change) => [...change.addedNodes].some((node) => node.querySelector?.("#nrg-stage video, .nrg-player video") || node.matches?.("#nrg-stage video")));
    if (arrived && !still.matches) toggle(true);
  }).observe(document, { childList: true, subtree: true });

  window.nrgNewSeed = () => Math.floor(Math.random() * 2 ** 32);
  requestAnimationFrame(tick);
})();
