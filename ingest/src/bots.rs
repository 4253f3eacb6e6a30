//! Reads user agents: whether it is a bot, and the kind of device.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

/// Distinct user agents kept. A site sees some hundreds; more must not fill the memory.
const KEPT_MAX: usize = 4_096;
/// Bytes of a user agent that are looked at.
const BYTES_MAX: usize = 512;

/// What is read from a user agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Agent {
    /// Crawlers, headless browsers and HTTP libraries.
    pub(crate) is_bot: bool,
    /// `desktop`, `mobile`, `tablet` or `console`, where it can be told.
    pub(crate) device_type: Option<&'static str>,
}

/// A cache: reading a user agent costs more than the rest of an event.
#[derive(Default)]
pub(crate) struct Agents {
    kept: RwLock<HashMap<Box<str>, Agent>>,
}

impl Agents {
    /// Reads a user agent.
    pub(crate) fn read(&self, text: &str) -> Agent {
        let text = &text[..text.floor_char_boundary(BYTES_MAX)];
        if let Some(agent) = self.kept.read().unwrap_or_else(PoisonError::into_inner).get(text) {
            return *agent;
        }
        let agent = read(text);
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_MAX {
            // Those in use come back with their next event, so no usage has to be tracked.
            kept.clear();
        }
        kept.insert(text.into(), agent);
        agent
    }
}

/// What the list of known agents does not have, in lower case. A bare `bot` would name a brand of telephones too.
const MORE_BOTS: [&str; 12] = [
    "bot/",
    "bot;",
    "bot)",
    "spider",
    "crawler",
    "headlesschrome",
    "phantomjs",
    "lighthouse",
    "python-requests/",
    "python-httpx/",
    "aiohttp/",
    "go-http-client/",
];

/// Models of tablets, and what apps on them say, in lower case.
const TABLETS: [&str; 7] = ["ipad", "tablet", "; sm-t", "; sm-x", " tab ", "nexus 7", "nexus 9"];

fn read(text: &str) -> Agent {
    let lower = text.to_ascii_lowercase();
    let known = woothee::parser::Parser::new().parse(text);
    let category = known.as_ref().map_or("", |known| known.category);
    // The name that woothee gives to curl, wget and the clients of programming languages.
    let is_library = known.as_ref().is_some_and(|known| known.name == "HTTP Library");
    let is_bot = category == "crawler" || is_library || MORE_BOTS.iter().any(|bot| lower.contains(bot));
    // A browser on a tablet with Android leaves `Mobile` out. Apps say nothing of the kind: of them only the model tells.
    let is_android_tablet = lower.starts_with("mozilla/") && lower.contains("android") && !lower.contains("mobile");
    let is_tablet = is_android_tablet || TABLETS.iter().any(|model| lower.contains(model));
    let device_type = match category {
        "smartphone" | "pc" if is_tablet => Some("tablet"),
        "pc" => Some("desktop"),
        "smartphone" | "mobilephone" => Some("mobile"),
        "appliance" => Some("console"),
        _ => None,
    };
    Agent { is_bot, device_type: device_type.filter(|_| !is_bot) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_told_apart() {
        let check = |text: &str, is_bot: bool, device_type: Option<&str>| {
            assert_eq!(Agents::default().read(text), Agent { is_bot, device_type: device_type.and_then(known) }, "{text}");
        };
        fn known(name: &str) -> Option<&'static str> {
            ["desktop", "mobile", "tablet", "console"].into_iter().find(|known| *known == name)
        }
        let chrome = "AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0";
        check(&format!("Mozilla/5.0 (Windows NT 10.0; Win64; x64) {chrome} Safari/537.36"), false, Some("desktop"));
        check(&format!("Mozilla/5.0 (Linux; Android 14; Pixel 8) {chrome} Mobile Safari/537.36"), false, Some("mobile"));
        check(&format!("Mozilla/5.0 (Linux; Android 14; SM-X900) {chrome} Safari/537.36"), false, Some("tablet"));
        let safari = "AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1";
        check(&format!("Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) {safari}"), false, Some("mobile"));
        check(&format!("Mozilla/5.0 (iPad; CPU OS 17_5 like Mac OS X) {safari}"), false, Some("tablet"));
        check("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", true, None);
        check("Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)", true, None);
        check(
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/126.0 Safari/537.36",
            true,
            None,
        );
        check(
            "Mozilla/5.0 (Linux; Android 9; CUBOT X19) AppleWebKit/537.36 Chrome/80.0 Mobile Safari/537.36",
            false,
            Some("mobile"),
        );
        // Android's own client, and apps.
        check("Dalvik/2.1.0 (Linux; U; Android 13; Pixel 6)", false, Some("mobile"));
        check("Dalvik/1.6.0 (Linux; U; Android 4.4.2; SM-G900F Build/KOT49H)", false, Some("mobile"));
        check("Dalvik/2.1.0 (Linux; U; Android 12; SM-T870 Build/SP2A)", false, Some("tablet"));
        check("Dalvik/2.1.0 (Linux; U; Android 9; Lenovo Tab M10 Build/PPR1)", false, Some("tablet"));
        check("curl/8.5.0", true, None);
        check("python-requests/2.31.0", true, None);
        check("", false, None);
        check("MyShop/3.1 (server)", false, None);
    }

    #[test]
    fn the_memory_is_bounded() {
        let agents = Agents::default();
        for n in 0..2 * KEPT_MAX {
            agents.read(&format!("agent {n}"));
        }
        agents.read(&"é".repeat(BYTES_MAX));
        let kept = agents.kept.read().expect("nobody panicked");
        assert!(kept.len() <= KEPT_MAX, "{}", kept.len());
        assert!(kept.keys().all(|text| text.len() <= BYTES_MAX));
    }
}
