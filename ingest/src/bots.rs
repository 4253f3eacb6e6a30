//! Reads user agents: whether it is a bot, of which kind, and the kind of device.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

/// Distinct user agents kept. A site sees some hundreds; more must not fill the memory.
const KEPT_MAX: usize = 4_096;
/// Bytes of a user agent that are looked at.
const BYTES_MAX: usize = 512;

/// What is read from a user agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Agent {
    /// What kind of bot it is, if it is one.
    pub(crate) bot: Option<BotClass>,
    /// `desktop`, `mobile`, `tablet` or `console`, where it can be told.
    pub(crate) device_type: Option<&'static str>,
}

/// What kind of bot it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BotClass {
    /// Reads pages for search engines and others.
    Crawler,
    /// A browser that a program drives.
    Headless,
    /// A client of HTTP of a programming language.
    Library,
    /// Looks whether a page is there, and how fast.
    Monitor,
    /// The client says so, and its agent does not.
    Declared,
}

impl BotClass {
    /// All of them, for counters.
    pub(crate) const ALL: [BotClass; 5] =
        [BotClass::Crawler, BotClass::Headless, BotClass::Library, BotClass::Monitor, BotClass::Declared];

    /// Returns the word for it, in `metadata.bot` and in counters.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            BotClass::Crawler => "crawler",
            BotClass::Headless => "headless",
            BotClass::Library => "library",
            BotClass::Monitor => "monitor",
            BotClass::Declared => "declared",
        }
    }
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

/// What agents of bots have in them, in lower case, beyond the list of known ones; the first that is found says the class. A bare `bot`
/// would name a brand of telephones too.
const MORE_BOTS: [(BotClass, &[&str]); 4] = [
    (
        BotClass::Monitor,
        &["uptimerobot", "pingdom", "statuscake", "site24x7", "datadogsynthetics", "newrelicpinger", "gtmetrix", "lighthouse"],
    ),
    (BotClass::Headless, &["headlesschrome", "phantomjs", "puppeteer", "playwright"]),
    (BotClass::Library, &["python-requests/", "python-httpx/", "aiohttp/", "go-http-client/"]),
    (BotClass::Crawler, &["bot/", "bot;", "bot)", "spider", "crawler"]),
];

/// Models of tablets, and what apps on them say, in lower case.
const TABLETS: [&str; 7] = ["ipad", "tablet", "; sm-t", "; sm-x", " tab ", "nexus 7", "nexus 9"];

fn read(text: &str) -> Agent {
    let lower = text.to_ascii_lowercase();
    let known = woothee::parser::Parser::new().parse(text);
    let category = known.as_ref().map_or("", |known| known.category);
    // The name that woothee gives to curl, wget and the clients of programming languages.
    let is_library = known.as_ref().is_some_and(|known| known.name == "HTTP Library");
    let known_class = || match (is_library, category) {
        (true, _) => Some(BotClass::Library),
        (false, "crawler") => Some(BotClass::Crawler),
        _ => None,
    };
    let named = MORE_BOTS.iter().find(|(_, words)| words.iter().any(|word| lower.contains(word))).map(|(class, _)| *class);
    let bot = named.or_else(known_class);
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
    Agent { bot, device_type: device_type.filter(|_| bot.is_none()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_told_apart() {
        let check = |text: &str, bot: Option<BotClass>, device_type: Option<&str>| {
            assert_eq!(Agents::default().read(text), Agent { bot, device_type: device_type.and_then(known) }, "{text}");
        };
        fn known(name: &str) -> Option<&'static str> {
            ["desktop", "mobile", "tablet", "console"].into_iter().find(|known| *known == name)
        }
        let chrome = "AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0";
        check(&format!("Mozilla/5.0 (Windows NT 10.0; Win64; x64) {chrome} Safari/537.36"), None, Some("desktop"));
        check(&format!("Mozilla/5.0 (Linux; Android 14; Pixel 8) {chrome} Mobile Safari/537.36"), None, Some("mobile"));
        check(&format!("Mozilla/5.0 (Linux; Android 14; SM-X900) {chrome} Safari/537.36"), None, Some("tablet"));
        let safari = "AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1";
        check(&format!("Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) {safari}"), None, Some("mobile"));
        check(&format!("Mozilla/5.0 (iPad; CPU OS 17_5 like Mac OS X) {safari}"), None, Some("tablet"));
        check("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", Some(BotClass::Crawler), None);
        check("Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)", Some(BotClass::Crawler), None);
        check(
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/126.0 Safari/537.36",
            Some(BotClass::Headless),
            None,
        );
        check(
            "Mozilla/5.0 (Linux; Android 9; CUBOT X19) AppleWebKit/537.36 Chrome/80.0 Mobile Safari/537.36",
            None,
            Some("mobile"),
        );
        // Android's own client, and apps.
        check("Dalvik/2.1.0 (Linux; U; Android 13; Pixel 6)", None, Some("mobile"));
        check("Dalvik/1.6.0 (Linux; U; Android 4.4.2; SM-G900F Build/KOT49H)", None, Some("mobile"));
        check("Dalvik/2.1.0 (Linux; U; Android 12; SM-T870 Build/SP2A)", None, Some("tablet"));
        check("Dalvik/2.1.0 (Linux; U; Android 9; Lenovo Tab M10 Build/PPR1)", None, Some("tablet"));
        check("curl/8.5.0", Some(BotClass::Library), None);
        check("python-requests/2.31.0", Some(BotClass::Library), None);
        check("Mozilla/5.0+(compatible; UptimeRobot/2.0; http://www.uptimerobot.com/)", Some(BotClass::Monitor), None);
        check("Pingdom.com_bot_version_1.4_(http://www.pingdom.com/)", Some(BotClass::Monitor), None);
        check("Go-http-client/1.1", Some(BotClass::Library), None);
        check("", None, None);
        check("MyShop/3.1 (server)", None, None);
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
