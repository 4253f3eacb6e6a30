// What `/weir.js` does in a page: the element that loads it says the key, and perhaps the collector, the consent and the cookie's domain. Calls made
// before it was there wait in `window.weir`: [["expose", "checkout", "b"], ..].
import { create } from "./weir.mjs";

const { src, dataset } = document.currentScript;
const waiting = window.weir || [];
const weir = create({
  url: dataset.url || new URL(src).origin,
  key: dataset.key,
  consent: dataset.consent === "required" ? false : undefined,
  cookieDomain: dataset.cookieDomain,
});
weir.push = ([name, ...values]) => weir[name](...values);
window.weir = weir;
waiting.forEach(weir.push);
