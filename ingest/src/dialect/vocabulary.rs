//! What becomes of an SDK's events: which are exposures, which are orders, and where each keeps experiment, variant, value and
//! currency. The table of the README is written from here.

use compact_str::CompactString;
use events::{Code, ConversionDetails, Details, Draft, ImpressionDetails, Rejection};

use super::item::Properties;

/// Events that tell of an exposure, by their names, and the properties that say of what.
pub(crate) struct Exposure {
    pub(crate) names: &'static [&'static str],
    /// The first that is there names the experiment.
    pub(crate) experiment: &'static [&'static str],
    /// The first that is there names the variant.
    pub(crate) variant: &'static [Variant],
    /// Whether an event without a variant means that none was shown; else it is at fault.
    pub(crate) may_lack_variant: bool,
}

/// Properties that may name a variant.
pub(crate) enum Variant {
    /// A text with something in it.
    Text(&'static [&'static str]),
    /// Such a text, or a number: an index, where there is nothing better.
    TextOrNumber(&'static [&'static str]),
    /// A text, or true or false.
    TextOrBoolean(&'static [&'static str]),
}

impl Variant {
    #[cfg(test)]
    fn keys(&self) -> &'static [&'static str] {
        match self {
            Variant::Text(keys) | Variant::TextOrNumber(keys) | Variant::TextOrBoolean(keys) => keys,
        }
    }

    fn of(&self, properties: &Properties<'_>) -> Option<(&'static str, CompactString)> {
        match self {
            Variant::Text(keys) => properties.string(keys),
            Variant::TextOrNumber(keys) => properties.text(keys),
            Variant::TextOrBoolean(keys) => keys.iter().find_map(|key| match properties.get(key)?.get() {
                flag @ ("true" | "false") => Some((*key, flag.into())),
                _ => properties.string(&[*key]),
            }),
        }
    }
}

const EXPERIMENT: &[&str] = &["experiment_id", "experimentId", "experiment", "experiment_name", "experimentName"];
const VARIANT_IDS: &[&str] = &["variation_id", "variationId", "variant_id", "variantId"];
const VARIANT_KEYS: &[&str] = &["variation_key", "variationKey"];
const VARIANT_NAMES: &[&str] = &["variation", "variant", "variation_name", "variationName", "variant_name", "variantName"];

/// All exposures, whatever dialect they come by: tools forward each other's events.
pub(crate) const EXPOSURES: &[Exposure] = &[
    Exposure {
        names: &["Experiment Viewed", "experiment_viewed", "$experiment_viewed", "$$experiment_viewed"],
        experiment: EXPERIMENT,
        // An id that is a number is an index; the `variation_key` is the variant's name in the experiment.
        variant: &[
            Variant::Text(VARIANT_IDS),
            Variant::TextOrNumber(VARIANT_KEYS),
            Variant::TextOrNumber(VARIANT_IDS),
            Variant::TextOrNumber(VARIANT_NAMES),
        ],
        may_lack_variant: false,
    },
    Exposure {
        names: &["$feature_flag_called", "$experiment_exposure"],
        experiment: &["$feature_flag", "experiment_id", "experimentId", "experiment", "experiment_name", "experimentName"],
        variant: &[
            Variant::Text(&["$feature_flag_variant_key"]),
            Variant::TextOrBoolean(&["$feature_flag_response"]),
            Variant::Text(VARIANT_IDS),
            Variant::TextOrNumber(VARIANT_KEYS),
            Variant::TextOrNumber(VARIANT_IDS),
            Variant::TextOrNumber(VARIANT_NAMES),
        ],
        // A flag that was asked for before the flags were loaded.
        may_lack_variant: true,
    },
    Exposure {
        names: &["statsig::gate_exposure"],
        experiment: &["gate"],
        variant: &[Variant::TextOrBoolean(&["gateValue"])],
        may_lack_variant: true,
    },
    Exposure {
        names: &["statsig::layer_exposure"],
        experiment: &["allocatedExperiment", "config"],
        variant: &[Variant::Text(&["ruleID"])],
        may_lack_variant: true,
    },
    Exposure {
        names: &["statsig::config_exposure"],
        experiment: &["config"],
        variant: &[Variant::Text(&["ruleID"])],
        may_lack_variant: true,
    },
];

/// Names of a purchase.
pub(crate) const ORDERS: &[&str] = &["Order Completed", "order_completed"];
/// Properties that make any event a conversion, and are its value.
pub(crate) const VALUES: &[&str] = &["revenue", "$revenue", "value"];
/// Properties that are the value of an order, or of an event that the project counts as a conversion, where it has none of the above.
pub(crate) const TOTALS: &[&str] = &["total"];
/// The property with the currency.
pub(crate) const CURRENCIES: &[&str] = &["currency", "$currency"];

/// Properties from which one event was made.
#[derive(Debug, Default)]
pub(super) struct Origins {
    pub(super) experiment: Option<&'static str>,
    pub(super) variant: Option<&'static str>,
    pub(super) value: Option<&'static str>,
    pub(super) currency: Option<&'static str>,
}

impl Origins {
    /// Returns where the client keeps a field: a place in its properties.
    pub(super) fn client_name(&self, properties: &str, field: &str) -> Option<String> {
        let key = match field {
            "experiment" => self.experiment,
            "variant" => self.variant,
            "value" => self.value,
            "currency" => self.currency,
            _ => None,
        };
        key.map(|key| format!("{properties}.{key}"))
    }
}

/// Decides what an event is: an exposure, a conversion, or anything else. `conversions` are the names that the project counts.
/// # Errors
/// `missing_field` for an exposure to no experiment.
pub(super) fn interpret(
    name: Option<&str>,
    properties: &Properties<'_>,
    conversions: &[String],
) -> Result<(Draft, Origins), Rejection> {
    let event = name.unwrap_or_default();
    let mut origins = Origins::default();
    let mut noted = |found: Option<(&'static str, CompactString)>, origin: fn(&mut Origins) -> &mut Option<&'static str>| {
        let (key, text) = found?;
        *origin(&mut origins) = Some(key);
        Some(text)
    };
    if let Some(exposure) = EXPOSURES.iter().find(|exposure| exposure.names.contains(&event)) {
        let experiment = noted(properties.text(exposure.experiment), |origins| &mut origins.experiment);
        let variant = exposure.variant.iter().find_map(|variant| variant.of(properties));
        let variant = noted(variant, |origins| &mut origins.variant);
        if experiment.is_none() {
            let wanted = exposure.experiment[0];
            let message = format!("{event} needs {wanted}, which names the experiment");
            return Err(Rejection::new(Code::MissingField, format!("{}.{wanted}", properties.key), message));
        }
        if variant.is_some() || !exposure.may_lack_variant {
            let details = Details::Impression(ImpressionDetails::default());
            return Ok((Draft { experiment, variant, ..Draft::new(details) }, origins));
        }
        return Ok((Draft { name: Some(event.into()), ..Draft::new(Details::Engagement) }, Origins::default()));
    }
    let counts = ORDERS.contains(&event) || conversions.iter().any(|conversion| conversion == event);
    let is_word = |text: &str| !text.chars().any(char::is_numeric);
    let value = properties
        .amount(VALUES)
        .or_else(|| if counts { properties.amount(TOTALS) } else { None })
        // An amount that cannot be read is kept as it is; the rules make it unknown. A `value` that is a word is none.
        .or_else(|| {
            let unreadable = properties.unreadable(VALUES);
            unreadable.filter(|(key, text)| counts || *key != "value" || !is_word(text))
        })
        .or_else(|| if counts { properties.unreadable(TOTALS) } else { None });
    let value = noted(value, |origins| &mut origins.value);
    let name = name.map(CompactString::from);
    if !counts && value.is_none() {
        return Ok((Draft { name, ..Draft::new(Details::Engagement) }, origins));
    }
    let currency = noted(properties.string(CURRENCIES), |origins| &mut origins.currency);
    let experiment = noted(properties.text(&["experiment_id", "experimentId"]), |origins| &mut origins.experiment);
    let variant = experiment.as_ref().and_then(|_| properties.text(VARIANT_IDS));
    let variant = noted(variant, |origins| &mut origins.variant);
    let details = Details::Conversion(ConversionDetails::default());
    Ok((Draft { name, value, currency, experiment, variant, ..Draft::new(details) }, origins))
}

/// Returns what an event of any dialect becomes, line by line, as Markdown: the table of the README.
#[cfg(test)]
fn table() -> String {
    let code = |names: &[&str]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let mut lines = vec!["| An SDK's event | becomes | experiment or value | variant or currency |".to_owned()];
    lines.push("|---|---|---|---|".to_owned());
    for exposure in EXPOSURES {
        let mut variants: Vec<&str> = Vec::new();
        for key in exposure.variant.iter().flat_map(|variant| variant.keys()) {
            if !variants.contains(key) {
                variants.push(key);
            }
        }
        let otherwise = if exposure.may_lack_variant { "; without one an engagement" } else { "" };
        lines.push(format!(
            "| {} | impression | {} | {}{otherwise} |",
            code(exposure.names),
            code(exposure.experiment),
            code(&variants)
        ));
    }
    lines.push(format!("| {} | conversion | {} | {} |", code(ORDERS), code(&[VALUES, TOTALS].concat()), code(CURRENCIES)));
    lines.push(format!("| any other with {} | conversion of its name | {} | {} |", code(VALUES), code(VALUES), code(CURRENCIES)));
    for (event, kind) in super::OTHERS {
        lines.push(format!("| {event} | {kind} | | |"));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With `WEIR_BLESS=1` the table is written into the README.
    #[test]
    fn the_readme_says_what_becomes_what() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
        let text = std::fs::read_to_string(file).expect("the README");
        let (begin, end) = ("<!-- what becomes what -->\n", "<!-- end -->");
        let (before, rest) = text.split_once(begin).expect("the table's begin");
        let (found, after) = rest.split_once(end).expect("the table's end");
        if std::env::var_os("WEIR_BLESS").is_some() {
            std::fs::write(file, format!("{before}{begin}{}{end}{after}", table())).expect("written");
        } else {
            assert_eq!(found, table());
        }
    }
}
