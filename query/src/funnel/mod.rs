//! `POST /v1/funnels`: a request becomes a [`definition`], its steps become conditions on events, an aggregate of DataFusion
//! ([`udaf`]) finds the level that each user reaches ([`algorithm`]), and [`answer`] counts the users of each level.

pub mod algorithm;
pub mod answer;
pub mod definition;
pub mod udaf;
