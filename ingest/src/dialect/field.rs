//! The fields of the native API and which kinds carry them.

use events::Kind;

/// A field of the native API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
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

/// Number of fields.
pub(super) const FIELDS: usize = Field::GroupId as usize + 1;

impl Field {
    /// Returns the field of a key. The columns' names in the fact tables mean the same as the API's.
    pub(super) fn of(key: &str) -> Option<Field> {
        Some(match key {
            "type" => Field::Type,
            "event_id" => Field::EventId,
            "user_id" => Field::UserId,
            "anonymous_id" => Field::AnonymousId,
            "timestamp" => Field::Timestamp,
            "sent_at" => Field::SentAt,
            "is_bot" => Field::IsBot,
            "session_id" | "session_identifier" => Field::SessionId,
            "properties" | "metadata" => Field::Properties,
            "name" | "conversion_type" | "event_type" => Field::Name,
            "experiment" | "experiment_id" => Field::Experiment,
            "variant" | "variant_id" => Field::Variant,
            "campaign" | "campaign_id" => Field::Campaign,
            "component" | "component_id" => Field::Component,
            "value" | "conversion_value" => Field::Value,
            "currency" => Field::Currency,
            "page_url" => Field::PageUrl,
            "referrer" => Field::Referrer,
            "user_agent" => Field::UserAgent,
            "language" | "language_code" => Field::Language,
            "time_zone" => Field::TimeZone,
            "screen" | "screen_resolution" => Field::Screen,
            "viewport" | "viewport_size" => Field::Viewport,
            "connection" | "connection_type" => Field::Connection,
            "utm_source" => Field::UtmSource,
            "utm_medium" => Field::UtmMedium,
            "utm_campaign" => Field::UtmCampaign,
            "country" | "country_code" => Field::Country,
            "region" => Field::Region,
            "city" => Field::City,
            "device_type" => Field::DeviceType,
            "time_on_page" => Field::TimeOnPage,
            "scroll_depth_percent" => Field::ScrollDepthPercent,
            "page_load_time" => Field::PageLoadTime,
            "bounce" => Field::Bounce,
            "is_first_exposure" => Field::IsFirstExposure,
            "user_was_eligible" => Field::UserWasEligible,
            "user_eligibility_status" => Field::UserEligibilityStatus,
            "user_context" => Field::UserContext,
            "time_to_convert" => Field::TimeToConvert,
            "is_first_conversion_for_experiment" => Field::IsFirstConversion,
            "conversion_attribution_source" => Field::AttributionSource,
            "conversion_window_days" => Field::ConversionWindowDays,
            "original_exposure_date" => Field::OriginalExposureDate,
            "conversion_eligibility_verified" => Field::EligibilityVerified,
            "source" => Field::Source,
            "medium" => Field::Medium,
            "referrer_source" => Field::ReferrerSource,
            "details" => Field::Details,
            "conversion_context" => Field::ConversionContext,
            "previous_id" => Field::PreviousId,
            "group_id" => Field::GroupId,
            _ => return None,
        })
    }

    /// Returns whether events of a kind have a column for it; without one it goes to the metadata.
    pub(super) fn is_carried_by(self, kind: Kind) -> bool {
        match self {
            Field::Name => kind != Kind::Impression,
            Field::Experiment | Field::Variant => matches!(kind, Kind::Impression | Kind::Conversion | Kind::Engagement),
            Field::Campaign | Field::Component | Field::Value | Field::Currency => {
                matches!(kind, Kind::Conversion | Kind::CampaignEvent)
            }
            Field::TimeOnPage
            | Field::ScrollDepthPercent
            | Field::PageLoadTime
            | Field::Bounce
            | Field::IsFirstExposure
            | Field::UserWasEligible
            | Field::UserEligibilityStatus
            | Field::UserContext => kind == Kind::Impression,
            Field::TimeToConvert
            | Field::IsFirstConversion
            | Field::AttributionSource
            | Field::ConversionWindowDays
            | Field::OriginalExposureDate
            | Field::EligibilityVerified
            | Field::Source
            | Field::Medium
            | Field::ReferrerSource
            | Field::Details
            | Field::ConversionContext => kind == Kind::Conversion,
            Field::PreviousId | Field::GroupId => kind == Kind::Identity,
            _ => true,
        }
    }
}
