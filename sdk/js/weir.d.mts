/** Where events go, and whether they may. */
export interface Options {
  /** The collector, such as `https://collect.example.com`. */
  url: string;
  /** A public write key. */
  key: string;
  /**
   * Whether the visitor has agreed. Without it: yes, unless the browser says no (Global Privacy Control, Do Not Track). What the visitor said
   * once, by `consent()`, comes before both. Without consent nothing is written and nothing is sent; the last 100 events wait in the page's memory.
   * With it, requests say so (`consent=true`), since the browser goes on objecting in their headers.
   */
  consent?: boolean;
  /** The domain of the cookie `weir_id`, such as `example.com`, if pixels on other hosts of it shall see the same visitor. */
  cookieDomain?: string;
}

/** What belongs to an event beside its own columns: anything that JSON can say. */
export type Properties = Record<string, unknown>;

/** A conversion; further members are its properties. */
export interface Conversion extends Properties {
  /** A UUID of its own, such as one that follows from the order: sent twice, it counts once. */
  event_id?: string;
  /** An amount, at most 6 decimals; a text stays exact. */
  value?: number | string;
  /** ISO 4217, such as `EUR`. */
  currency?: string;
}

export interface Weir {
  /** Returns the visitor's anonymous id, a UUID kept for a year; undefined without consent. */
  id(): string | undefined;
  /** Sends an engagement event, and returns its id. */
  track(name: string, properties?: Properties): string;
  /** Sends a conversion, and returns its id. */
  convert(name: string, conversion?: Conversion): string;
  /** Sends that the visitor sees a variant, once in a tab; undefined if it was sent before. */
  expose(experiment: string, variant: string, properties?: Properties): string | undefined;
  /** Says who the visitor is: later events carry this user's id beside the anonymous one. */
  identify(user: string, properties?: Properties): string;
  /** Remembers what the visitor decided. Without consent the id, the cookie and all that waits are removed. */
  consent(given: boolean): void;
  /** Sends what waits, without waiting for more. */
  flush(): Promise<void>;
}

/** Makes a client. What an earlier page left unsent is sent first. */
export function create(options: Options): Weir;
