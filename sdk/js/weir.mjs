// Sends the events of a page to Weir's collector. An event is kept in the browser until the collector has acknowledged it, and has the same id at
// each try: none is lost, and none counts twice. The types and what each member means are in weir.d.mts.

const PREFIX = "weir:";
const BATCH_EVENTS = 100;
// What a request may carry that outlives its page is 64 KiB in all browsers.
const BATCH_BYTES = 60000;
const HELD_MAX = 100;
const WAIT_MAX = 60000;

export const create = ({ url, key, consent, cookieDomain }) => {
  const memory = new Map();
  const attempt = (work) => {
    try {
      return work();
    } catch {}
  };
  // An entry for each event: tabs that write at the same time do not overwrite each other's. Memory serves where nothing can be stored.
  const put = (name, text) => attempt(() => (localStorage.setItem(PREFIX + name, text), 1)) || memory.set(name, text);
  const get = (name) => attempt(() => localStorage.getItem(PREFIX + name)) ?? memory.get(name);
  const remove = (name) => {
    attempt(() => localStorage.removeItem(PREFIX + name));
    memory.delete(name);
  };
  const stored = () => attempt(() => Object.keys(localStorage).filter((name) => name.startsWith(PREFIX))) || [];
  const names = (start) =>
    [...stored().map((name) => name.slice(PREFIX.length)), ...memory.keys()].filter((name) => name.startsWith(start)).sort();
  // Pages without TLS have no randomUUID; the URL of an object ends with one.
  const uuid = () => attempt(() => crypto.randomUUID()) || URL.createObjectURL(new Blob()).slice(-36);
  const cookie = (value, age) =>
    attempt(() => {
      document.cookie = `weir_id=${value};path=/;max-age=${age};samesite=lax` + (cookieDomain ? ";domain=" + cookieDomain : "");
    });

  const asked = get("consent");
  const objects = navigator.globalPrivacyControl || navigator.doNotTrack === "1";
  let allowed = asked ? asked === "1" : (consent ?? !objects);
  let held = [];
  let timer;
  let busy = false;
  let failures = 0;

  const id = () => {
    const known = get("id") || attempt(() => document.cookie.match(/(?:^|; )weir_id=([^;]+)/)?.[1]) || uuid();
    put("id", known);
    cookie(known, 31536000);
    return known;
  };

  const add = (type, fields) => {
    const event = { type, event_id: uuid(), timestamp: new Date().toISOString(), ...fields };
    if (!allowed) {
      held = [...held, event].slice(-HELD_MAX);
      return event.event_id;
    }
    const known = {
      anonymous_id: id(),
      user_id: get("user"),
      page_url: location.href,
      referrer: document.referrer || undefined,
      language: navigator.language,
      time_zone: attempt(() => Intl.DateTimeFormat().resolvedOptions().timeZone),
      screen: `${screen.width}x${screen.height}`,
      viewport: `${innerWidth}x${innerHeight}`,
    };
    put(`e:${event.timestamp}:${event.event_id}`, JSON.stringify({ ...known, ...event }));
    later(50);
    return event.event_id;
  };

  const later = (wait) => {
    timer ??= setTimeout(() => {
      timer = undefined;
      flush();
    }, wait);
  };

  const next = () => {
    const batch = [];
    let bytes = 100;
    for (const name of names("e:")) {
      const text = get(name);
      bytes += text ? text.length * 3 : 0;
      if (batch.length && (batch.length === BATCH_EVENTS || bytes > BATCH_BYTES)) break;
      if (text) batch.push([name, text]);
    }
    return batch;
  };
  // Who agreed is told apart from who was not asked: the browser objects in either's headers.
  const address = () =>
    `${url.replace(/\/+$/, "")}/v1/events?key=${encodeURIComponent(key)}` + (consent || get("consent") === "1" ? "&consent=true" : "");
  const bodyOf = (batch) => `{"sent_at":"${new Date().toISOString()}","events":[${batch.map(([, text]) => text)}]}`;

  const flush = async () => {
    const batch = next();
    if (busy || !allowed || !batch.length) return;
    busy = true;
    let wait = 0;
    try {
      // A text needs no preflight.
      const body = bodyOf(batch);
      const answer = await fetch(address(), { method: "POST", body, keepalive: body.length < BATCH_BYTES / 3 });
      if (answer.status >= 500 || answer.status === 429 || answer.status === 408) throw answer.headers.get("Retry-After");
      batch.forEach(([name]) => remove(name));
      failures = 0;
      const told = await attempt(() => answer.json());
      if (!answer.ok || told?.rejected?.length) console.warn("weir: not accepted", told);
    } catch (seconds) {
      wait = Math.min(WAIT_MAX, 1000 * 2 ** failures++) * (0.5 + Math.random() / 2);
      if (seconds > 0) wait = Math.max(wait, seconds * 1000);
    }
    busy = false;
    if (wait || next().length) later(wait);
  };

  // The answer to a beacon is not seen: what it carries is sent again with the next page, and stored once.
  const leave = () => {
    const batch = allowed ? next() : [];
    if (batch.length) attempt(() => navigator.sendBeacon(address(), bodyOf(batch)));
  };
  document.addEventListener("visibilitychange", () => document.visibilityState === "hidden" && leave());
  addEventListener("online", () => later(0));

  if (allowed) {
    id();
    later(0);
  }
  return {
    id: () => (allowed ? id() : undefined),
    track: (name, properties) => add("engagement", { name, properties }),
    convert: (name, { event_id, value, currency, ...properties } = {}) =>
      add("conversion", { name, value: value === undefined ? value : `${value}`, currency, properties, ...(event_id && { event_id }) }),
    expose: (experiment, variant, properties) => {
      const seen = `${PREFIX}x:${experiment}:${variant}:${get("user") || ""}`;
      if (attempt(() => sessionStorage.getItem(seen)) || memory.get(seen)) return undefined;
      memory.set(seen, "1");
      attempt(() => allowed && sessionStorage.setItem(seen, "1"));
      return add("impression", { experiment, variant, properties });
    },
    identify: (user, properties) => {
      if (allowed) put("user", user);
      return add("identity", { user_id: user, name: "identify", properties });
    },
    consent: (given) => {
      allowed = given;
      if (!given) {
        names("").forEach(remove);
        cookie("", 0);
        held = [];
      }
      put("consent", given ? "1" : "0");
      const waiting = held;
      held = [];
      waiting.forEach(({ type, ...fields }) => add(type, fields));
    },
    flush,
  };
};
