//! The `context` of Segment's calls: page, device, location.

use compact_str::{CompactString, format_compact};
use events::{Draft, Rejection};
use serde_json::value::RawValue;

use crate::dialect::item::few;
use crate::dialect::members::{Member, Value, is_number, members, write_string};

/// A call's context over its batch's. What a column takes is taken out; the rest goes to the metadata.
pub(super) struct Context<'a> {
    members: Vec<(Member<'a>, Option<Vec<Member<'a>>>)>,
}

impl<'a> Context<'a> {
    pub(super) fn new(own: Option<&'a RawValue>, batch: Option<&'a RawValue>) -> Result<Self, Rejection> {
        let mut found: Vec<(Member<'a>, Option<Vec<Member<'a>>>)> = Vec::new();
        // A context that is not an object is ignored.
        let all = [own, batch].into_iter().flatten().filter_map(|raw| members(raw).ok()).flatten().collect();
        for member in few(all, "context")? {
            if found.iter().all(|(earlier, _)| earlier.key != member.key) {
                let inner = match member.value {
                    Value::Json(raw) if raw.get().starts_with('{') => members(raw).ok(),
                    _ => None,
                };
                found.push((member, inner));
            }
        }
        Ok(Context { members: found })
    }

    /// Takes a member out, of the context itself (`group` is empty) or of one of its objects.
    pub(super) fn take(&mut self, group: &str, key: &str) -> Option<Value<'a>> {
        if group.is_empty() {
            let at = self.members.iter().position(|(member, _)| member.key == key)?;
            return Some(self.members.remove(at).0.value);
        }
        let inner = self.members.iter_mut().find(|(member, _)| member.key == group)?.1.as_mut()?;
        let at = inner.iter().position(|member| member.key == key)?;
        Some(inner.remove(at).value)
    }

    /// Takes a member out if it is a text; else it stays where it is.
    pub(super) fn take_text(&mut self, group: &str, key: &str) -> Option<CompactString> {
        self.take_if(group, key, |value| value.text(key).ok())
    }

    /// The same of a text, or of the digits of a number.
    pub(super) fn take_text_or_number(&mut self, group: &str, key: &str) -> Option<CompactString> {
        self.take_if(group, key, |value| value.text_or_number(key).ok())
    }

    fn take_if(
        &mut self,
        group: &str,
        key: &str,
        read: impl FnOnce(&Value<'a>) -> Option<CompactString>,
    ) -> Option<CompactString> {
        let peek = if group.is_empty() {
            self.members.iter().find(|(member, _)| member.key == key).map(|(member, _)| member)
        } else {
            let inner = self.members.iter().find(|(member, _)| member.key == group).and_then(|(_, inner)| inner.as_ref());
            inner.and_then(|inner| inner.iter().find(|member| member.key == key))
        };
        let text = read(&peek?.value)?;
        self.take(group, key);
        Some(text)
    }

    /// Takes out what has a column.
    pub(super) fn take_known(&mut self, draft: &mut Draft) {
        let context = &mut draft.context;
        context.page_url = self.take_text("page", "url");
        context.referrer = self.take_text("page", "referrer");
        context.user_agent = self.take_text("", "userAgent");
        context.language = self.take_text("", "locale");
        context.time_zone = self.take_text("", "timezone");
        context.utm_source = self.take_text("campaign", "source");
        context.utm_medium = self.take_text("campaign", "medium");
        context.utm_campaign = self.take_text("campaign", "name");
        context.country = self.take_text("location", "country");
        context.region = self.take_text("location", "region");
        context.city = self.take_text("location", "city");
        context.device_type = self.take_text("device", "type");
        let pair = |of: &Self, width: &str, height: &str| {
            let inner = of.members.iter().find(|(member, _)| member.key == "screen").and_then(|(_, inner)| inner.as_ref())?;
            let digits = |key: &str| match inner.iter().find(|member| member.key == key)?.value {
                Value::Json(raw) if is_number(raw) => Some(raw.get()),
                _ => None,
            };
            Some(format_compact!("{}x{}", digits(width)?, digits(height)?))
        };
        context.screen = pair(self, "width", "height");
        context.viewport = pair(self, "innerWidth", "innerHeight");
        for (taken, keys) in [(&context.screen, ["width", "height"]), (&context.viewport, ["innerWidth", "innerHeight"])] {
            if taken.is_some() {
                for key in keys {
                    self.take("screen", key);
                }
            }
        }
        for kind in ["wifi", "cellular", "bluetooth"] {
            let flag = self.take("network", kind);
            if context.connection.is_none() && flag.is_some_and(|value| value.boolean(kind).unwrap_or(false)) {
                context.connection = Some(kind.into());
            }
        }
    }

    /// Writes what is left as a JSON object; none if nothing is.
    pub(super) fn rest(&self) -> Option<String> {
        let mut out = String::new();
        for (member, inner) in self.members.iter().filter(|(member, _)| !member.value.is_absent()) {
            let mut value = String::new();
            match inner {
                None => member.value.write_to(&mut value),
                Some(inner) if inner.is_empty() => continue,
                Some(inner) => write_object(inner.iter(), &mut value),
            }
            out.push(if out.is_empty() { '{' } else { ',' });
            write_string(&member.key, &mut out);
            out.push(':');
            out.push_str(&value);
        }
        (!out.is_empty()).then(|| out + "}")
    }
}

fn write_object<'m, 'a: 'm>(members: impl Iterator<Item = &'m Member<'a>>, out: &mut String) {
    out.push('{');
    for (at, member) in members.enumerate() {
        if at > 0 {
            out.push(',');
        }
        write_string(&member.key, out);
        out.push(':');
        member.value.write_to(out);
    }
    out.push('}');
}
