//! The fields of the native API and which kinds carry them.

use events::Kind;

/// A field of the native API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    Type,
    EventId,
    UserId,
    AnonymousId,
    Timestamp,
    SentAt,
    IsBot,
    SessionId,
    Properties,
    Name,
    Experiment,
    Variant,
    Campaign,
    Component,
    Value,
    Currency,
    PageUrl,
    Referrer,
    UserAgent,
    Language,
    TimeZone,
    Screen,
    Viewport,
    Connection,
    UtmSource,
    UtmMedium,
    UtmCampaign,
    Country,
    Region,
    City,
    DeviceType,
    TimeOnPage,
    ScrollDepthPercent,
    PageLoadTime,
    Bounce,
    IsFirstExposure,
    UserWasEligible,
    UserEligibilityStatus,
    UserContext,
    TimeToConvert,
    IsFirstConversion,
    AttributionSource,
    ConversionWindowDays,
    OriginalExposureDate,
    EligibilityVerified,
    Source,
    Medium,
    ReferrerSource,
    Details,
    ConversionContext,
    PreviousId,
    GroupId,
}

/// Number of slots.
pub(super) const SLOTS: usize = Slot::GroupId as usize + 1;

impl Slot {
    /// Returns the field of a key. The columns' names in the fact tables mean the same as the API's.
    pub(super) fn of(key: &str) -> Option<Slot> {
        Some(match key {
            "type" => Slot::Type,
            "event_id" => Slot::EventId,
            "user_id" => Slot::UserId,
            "anonymous_id" => Slot::AnonymousId,
            "timestamp" => Slot::Timestamp,
            "sent_at" => Slot::SentAt,
            "is_bot" => Slot::IsBot,
            "session_id" | "session_identifier" => Slot::SessionId,
            "properties" | "metadata" => Slot::Properties,
            "name" | "conversion_type" | "event_type" => Slot::Name,
            "experiment" | "experiment_id" => Slot::Experiment,
            "variant" | "variant_id" => Slot::Variant,
            "campaign" | "campaign_id" => Slot::Campaign,
            "component" | "component_id" => Slot::Component,
            "value" | "conversion_value" => Slot::Value,
            "currency" => Slot::Currency,
            "page_url" => Slot::PageUrl,
            "referrer" => Slot::Referrer,
            "user_agent" => Slot::UserAgent,
            "language" | "language_code" => Slot::Language,
            "time_zone" => Slot::TimeZone,
            "screen" | "screen_resolution" => Slot::Screen,
            "viewport" | "viewport_size" => Slot::Viewport,
            "connection" | "connection_type" => Slot::Connection,
            "utm_source" => Slot::UtmSource,
            "utm_medium" => Slot::UtmMedium,
            "utm_campaign" => Slot::UtmCampaign,
            "country" | "country_code" => Slot::Country,
            "region" => Slot::Region,
            "city" => Slot::City,
            "device_type" => Slot::DeviceType,
            "time_on_page" => Slot::TimeOnPage,
            "scroll_depth_percent" => Slot::ScrollDepthPercent,
            "page_load_time" => Slot::PageLoadTime,
            "bounce" => Slot::Bounce,
            "is_first_exposure" => Slot::IsFirstExposure,
            "user_was_eligible" => Slot::UserWasEligible,
            "user_eligibility_status" => Slot::UserEligibilityStatus,
            "user_context" => Slot::UserContext,
            "time_to_convert" => Slot::TimeToConvert,
            "is_first_conversion_for_experiment" => Slot::IsFirstConversion,
            "conversion_attribution_source" => Slot::AttributionSource,
            "conversion_window_days" => Slot::ConversionWindowDays,
            "original_exposure_date" => Slot::OriginalExposureDate,
            "conversion_eligibility_verified" => Slot::EligibilityVerified,
            "source" => Slot::Source,
            "medium" => Slot::Medium,
            "referrer_source" => Slot::ReferrerSource,
            "details" => Slot::Details,
            "conversion_context" => Slot::ConversionContext,
            "previous_id" => Slot::PreviousId,
            "group_id" => Slot::GroupId,
            _ => return None,
        })
    }

    /// Returns whether events of a kind have a column for it; without one it goes to the metadata.
    pub(super) fn is_carried_by(self, kind: Kind) -> bool {
        match self {
            Slot::Name => kind != Kind::Impression,
            Slot::Experiment | Slot::Variant => matches!(kind, Kind::Impression | Kind::Conversion | Kind::Engagement),
            Slot::Campaign | Slot::Component | Slot::Value | Slot::Currency => {
                matches!(kind, Kind::Conversion | Kind::CampaignEvent)
            }
            Slot::TimeOnPage
            | Slot::ScrollDepthPercent
            | Slot::PageLoadTime
            | Slot::Bounce
            | Slot::IsFirstExposure
            | Slot::UserWasEligible
            | Slot::UserEligibilityStatus
            | Slot::UserContext => kind == Kind::Impression,
            Slot::TimeToConvert
            | Slot::IsFirstConversion
            | Slot::AttributionSource
            | Slot::ConversionWindowDays
            | Slot::OriginalExposureDate
            | Slot::EligibilityVerified
            | Slot::Source
            | Slot::Medium
            | Slot::ReferrerSource
            | Slot::Details
            | Slot::ConversionContext => kind == Kind::Conversion,
            Slot::PreviousId | Slot::GroupId => kind == Kind::Identity,
            _ => true,
        }
    }
}
