"use strict";
(() => {
  const data = JSON.parse(document.getElementById("stepper-data").textContent);
  const root = document.getElementById("stepper");
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const made = (tag, className, text = "") => {
    const element = document.createElement(tag);
    element.className = className;
    element.textContent = text;
    return element;
  };

  const state = { ...data.start, step: 0, temperature: 1, timer: 0 };
  const model = () => data.models[state.model];
  const found = () => model().attacks[state.attack].found;
  const run = () => found()[state.arithmetic][state.image];
  const last = () => (run() ? run().pixels.length : 0);

  // Numbers ----------------------------------------------------------------------------------------------------------

  const LOG_HALF = Math.log(0.5);
  const LOG_ZERO = 150 * LOG_HALF; // float32 rounds what is not above 2^-150 to 0: half its smallest number
  const LOG_ONE = 25 * LOG_HALF; // and 1 - 2^-25 to 1

  const logSum = (values) => {
    const top = Math.max(...values);
    return top + Math.log(values.reduce((sum, value) => sum + Math.exp(value - top), 0));
  };

  /** Of each class: log p and log (1 - p), which stay finite where p is 0 or 1 in any floating point. */
  const softmax = (gaps, temperature) => {
    const scaled = gaps.map((gap) => -gap / temperature);
    const total = logSum(scaled);
    return scaled.map((value, place) => ({
      log: value - total,
      rest: logSum(scaled.filter((_, other) => other !== place)) - total,
    }));
  };

  const power = (log) => {
    let exponent = Math.floor(log / Math.LN10);
    let mantissa = Math.exp(log - exponent * Math.LN10).toFixed(1);
    if (mantissa === "10.0") {
      mantissa = "1.0";
      exponent += 1;
    }
    const raised = [...String(exponent)].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("");
    return `${mantissa}\u00a0×\u00a010${raised}`;
  };

  const written = ({ log, rest }) => {
    if (log > LOG_HALF) {
      return Math.exp(rest) < 0.001 ? `1\u00a0−\u00a0${power(rest)}` : Math.exp(log).toFixed(3);
    }
    return Math.exp(log) < 0.001 ? power(log) : Math.exp(log).toFixed(3);
  };

  const inFloat32 = ({ log, rest }) => (log <= LOG_ZERO ? "0 in float32" : rest <= LOG_ONE ? "1 in float32" : "");
  const digits = (value) => String(Number(value.toPrecision(3))).replace("-", "−");
  const fixed = (value) => value.toFixed(Math.abs(value) < 1000 ? 1 : 0).replace("-", "−");

  // The image --------------------------------------------------------------------------------------------------------

  const drawImage = () => {
    const svg = part("image");
    const pixels = run() ? run().pixels.slice(0, state.step) : [];
    const squares = pixels.map((pixel, place) => {
      const square = document.createElementNS(svg.namespaceURI, "rect");
      const raised = run().levels[place] === 1;
      const kind = `${raised ? "raised" : "lowered"}${place === pixels.length - 1 ? " latest" : ""}`;
      const shape = { x: pixel % data.width, y: Math.floor(pixel / data.width), width: 1, height: 1, class: kind };
      Object.entries(shape).forEach(([name, value]) => square.setAttribute(name, value));
      return square;
    });
    svg.querySelector("image").setAttribute("href", data.images[state.image].source);
    svg.querySelector("g").replaceChildren(...squares);
    svg.setAttribute("aria-label", `an image of ${named(data.images[state.image].label)}, ${counted(state.step)} set`);
  };

  // The bars ---------------------------------------------------------------------------------------------------------

  const named = (place) => data.classes[place] ?? String(place);
  const counted = (count) => `${count} ${count === 1 ? "pixel" : "pixels"}`;

  const rows = data.classes.map((name) => {
    const row = document.createElement("tr");
    const head = made("th", "");
    head.scope = "row";
    head.title = name;
    const [line, taken, right] = [made("div", ""), made("span", "taken"), made("span", "right")];
    line.append(taken, made("span", "class", name), right);
    head.append(line);
    const cells = ["logit", "probability"].map((kind) => {
      const [cell, track, bar] = [made("td", kind), made("div", "track"), made("i", "")];
      const number = made("span", "number");
      const mark = made("small", "");
      track.append(bar);
      cell.append(track, number, mark);
      row.append(cell);
      return { bar, number, mark };
    });
    row.prepend(head);
    part("bars").append(row);
    return { row, taken, right, logit: cells[0], probability: cells[1] };
  });

  const put = ({ bar, number, mark }, from, to, text, note = "") => {
    bar.style.left = `${100 * Math.min(from, to)}%`;
    bar.style.width = `${100 * Math.abs(to - from)}%`;
    number.textContent = text;
    mark.textContent = note;
  };

  /** The class it is taken for, and the probability of that in words. */
  const drawBars = () => {
    const gaps = run().gaps[state.step];
    const largest = run().largest[state.step];
    const read = softmax(gaps, state.temperature);
    const high = Math.max(0, ...run().largest); // one scale for all steps, so that bars can be compared
    const low = Math.min(0, ...run().gaps.map((some, step) => run().largest[step] - Math.max(...some)));
    const along = (value) => (high > low ? (value - low) / (high - low) : 0);
    const predicted = gaps.indexOf(0);
    rows.forEach(({ row, taken, right, logit, probability }, place) => {
      row.hidden = place >= gaps.length;
      if (row.hidden) return;
      row.className = place === predicted ? "predicted" : "";
      taken.textContent = place === predicted ? "▸" : "";
      right.textContent = place === data.images[state.image].label ? "✓" : "";
      put(logit, along(0), along(largest - gaps[place]), fixed(largest - gaps[place]));
      put(probability, 0, Math.exp(read[place].log), written(read[place]), inFloat32(read[place]));
    });
    return `${named(predicted)} with probability ${written(read[predicted])}`;
  };

  // Words ------------------------------------------------------------------------------------------------------------

  const sentence = (reading) => {
    const { outcome, gaps } = run();
    const taken = `read at T\u00a0=\u00a0${digits(state.temperature)}: takes it for ${reading}`;
    if (outcome === "wrong") return `Wrong before any attack, ${taken}.`;
    if (last() === 0) return `Withstood: within its budget, the attack found no pixels that fool the model; ${taken}.`;
    if (state.step === 0) return `Before the first of ${counted(last())}, ${taken}.`;
    const before = gaps[0].indexOf(0);
    const was = gaps[state.step].indexOf(0) === before ? "" : ` (was ${named(before)})`;
    return `After ${state.step} of ${counted(last())}, ${taken}${was}.`;
  };

  /** Where this state is found again: a link within the page, to copy or to follow. */
  const address = () => {
    const { image, step, arithmetic } = state;
    const names = { model: model().name, attack: model().attacks[state.attack].name };
    return `#${new URLSearchParams({ ...names, arithmetic, image, step, T: digits(state.temperature) })}`;
  };

  /** What the page's address asks for, as far as it is there; nothing if it asks for another place of the page. */
  const asked = () => {
    const wanted = new URLSearchParams(location.hash.slice(1));
    const place = data.models.findIndex(({ name }) => name === wanted.get("model"));
    const attacks = data.models[place]?.attacks ?? [];
    const attack = attacks.findIndex(({ name }) => name === wanted.get("attack"));
    const [image, step, temperature] = ["image", "step", "T"].map((name) => Number(wanted.get(name)));
    const arithmetic = wanted.get("arithmetic");
    if (attack < 0 || !attacks[attack].found[arithmetic]?.[image]) return null;
    return { model: place, attack, arithmetic, image, step: step || 0, temperature: temperature > 0 ? temperature : 1 };
  };

  const within = (value, low, high) => Math.min(high, Math.max(low, value));

  const draw = () => {
    state.step = Math.min(state.step, last());
    drawImage();
    part("table").hidden = !run();
    part("words").textContent = run() ? sentence(drawBars()) : "This attack was not made on this image.";
    const [step, temperature] = [part("step"), part("temperature")];
    step.max = last();
    step.value = state.step;
    step.setAttribute("aria-valuetext", `${state.step} of ${last()}`);
    part("step-value").textContent = `${state.step} of ${last()}`;
    [step, part("play")].forEach((control) => (control.disabled = last() === 0));
    part("previous").setAttribute("aria-disabled", state.step === 0); // not `disabled`, which would lose the focus
    part("next").setAttribute("aria-disabled", state.step === last());
    temperature.value = 100 * Math.log10(state.temperature);
    temperature.setAttribute("aria-valuetext", digits(state.temperature));
    part("temperature-value").textContent = digits(state.temperature);
    part("link").href = address();
    part("trained").hidden = model().temperature === 1;
    part("trained").textContent = `${digits(model().temperature)}, as trained`;
  };

  // Choices ----------------------------------------------------------------------------------------------------------

  const offer = (select, names, chosen) => {
    select.replaceChildren(...names.map((name, place) => new Option(name, place, false, place === chosen)));
    select.closest("label").hidden = names.length < 2 && select !== part("model");
  };

  const thumbnails = data.images.map(({ source, label }, place) => {
    const [choice, button, image] = [made("label", ""), document.createElement("input"), new Image()];
    Object.assign(button, { type: "radio", name: "stepper-image", checked: place === state.image });
    Object.assign(image, { src: source, alt: named(label) });
    choice.title = named(label);
    choice.append(button, image);
    part("images").append(choice);
    button.addEventListener("change", () => choose({ image: place }));
    return choice;
  });

  const offerAll = () => {
    const arithmetics = Object.keys(found());
    offer(part("model"), data.models.map(({ name }) => name), state.model);
    offer(part("attack"), model().attacks.map(({ name }) => name), state.attack);
    offer(part("arithmetic"), arithmetics, arithmetics.indexOf(state.arithmetic));
    const runs = found()[state.arithmetic];
    thumbnails.forEach((choice, place) => choice.classList.toggle("faded", runs[place]?.outcome !== "fooled"));
  };

  /** Keeps what can be kept: the attack of that name, the arithmetic, and the step, or the end if it was there. */
  const choose = (changes) => {
    stop();
    const ended = state.step > 0 && state.step === last();
    const { name } = model().attacks[state.attack];
    Object.assign(state, changes);
    if ("model" in changes) {
      state.attack = Math.max(0, model().attacks.findIndex((attack) => attack.name === name));
      state.temperature = model().temperature;
    }
    if (!(state.arithmetic in found())) state.arithmetic = Object.keys(found()).at(-1);
    if (ended) state.step = last();
    offerAll();
    draw();
  };

  // Playing ----------------------------------------------------------------------------------------------------------

  const show = (step) => {
    state.step = within(step, 0, last());
    draw();
  };

  const stop = () => {
    clearInterval(state.timer);
    state.timer = 0;
    part("play").textContent = "play";
    part("words").setAttribute("aria-live", "polite");
  };

  const play = () => {
    part("play").textContent = "pause";
    part("words").setAttribute("aria-live", "off"); // nobody can listen to five sentences a second
    if (state.step === last()) show(0);
    state.timer = setInterval(() => {
      show(state.step + 1);
      if (state.step === last()) stop();
    }, 200);
  };

  const on = (name, event, act) => part(name).addEventListener(event, act);
  on("model", "change", (event) => choose({ model: Number(event.target.value) }));
  on("attack", "change", (event) => choose({ attack: Number(event.target.value) }));
  on("arithmetic", "change", (event) => choose({ arithmetic: Object.keys(found())[event.target.value] }));
  on("play", "click", () => (state.timer ? stop() : play()));
  const moved = (step) => () => {
    stop();
    show(step());
  };
  on("previous", "click", moved(() => state.step - 1));
  on("next", "click", moved(() => state.step + 1));
  on("step", "input", moved(() => Number(part("step").value)));
  const heated = (temperature) => () => {
    state.temperature = temperature();
    draw();
  };
  on("temperature", "input", heated(() => 10 ** (part("temperature").value / 100)));
  on("used", "click", heated(() => 1));
  on("trained", "click", heated(() => model().temperature));

  /** At first, and when the reader follows a link to a state. */
  const restore = () => {
    const found = asked();
    if (!found) return;
    stop();
    Object.assign(state, found, { step: within(Math.round(found.step), 0, Infinity) });
    thumbnails[state.image].querySelector("input").checked = true;
    offerAll();
    draw();
    root.parentElement.scrollIntoView();
  };

  offerAll();
  draw();
  root.hidden = false;
  restore();
  addEventListener("hashchange", restore);
})();
