//! Which hosts a request may name, where it could come from a page that must not read the answer.
//!
//! A site can have its own name resolve to 127.0.0.1 for a visitor (DNS rebinding). The visitor's browser then takes what a loopback
//! address answers for that site's own, and lets its pages read it. Such requests name the site, so an address that only this machine
//! can reach answers those that name this machine, or a host that an operator has allowed.
//! Source: RFC 9110 sections 7.2 (Host) and 15.5.20 (421 Misdirected Request).

use std::net::{IpAddr, SocketAddr};

use hyper::Request;
use hyper::header::HOST;
use hyper::http::uri::Authority;

use crate::admin;

/// The hosts that requests of one address may name.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    allowed: Vec<String>,
    admin_only: bool,
}

impl Hosts {
    /// All requests are looked at. `allowed`: names beside `localhost` and loopback addresses, without a port; with one of them at
    /// least an address is looked at that is not on loopback, too.
    pub fn new(allowed: &[String]) -> Self {
        Hosts { allowed: allowed.to_vec(), admin_only: false }
    }

    /// The same for requests of the admin endpoint alone: the others answer nothing that a page may not read.
    pub fn of_admin_endpoint(allowed: &[String]) -> Self {
        Hosts { admin_only: true, ..Hosts::new(allowed) }
    }

    /// Returns whether a request may be answered by this address. One without a host may: browsers always name one.
    pub(crate) fn allow<B>(&self, address: SocketAddr, request: &Request<B>) -> bool {
        let is_checked = address.ip().to_canonical().is_loopback() || !self.allowed.is_empty();
        if !is_checked || (self.admin_only && !admin::is_page(request.uri().path())) {
            return true;
        }
        let in_target = request.uri().authority().map(Authority::as_str);
        let mut in_headers = request.headers().get_all(HOST).iter().map(|value| value.to_str().unwrap_or_default());
        in_target.is_none_or(|host| self.is_allowed(host)) && in_headers.all(|host| self.is_allowed(host))
    }

    /// `host` may have a port.
    fn is_allowed(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        if host.contains('@') {
            return false;
        }
        let name = authority.host();
        let literal = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        if let Ok(address) = literal.parse::<IpAddr>() {
            return address.to_canonical().is_loopback() || self.allowed.iter().any(|allowed| allowed == literal);
        }
        name.eq_ignore_ascii_case("localhost") || self.allowed.iter().any(|allowed| name.eq_ignore_ascii_case(allowed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(hosts: &Hosts, address: &str, target: &str, named: &[&str], expected: bool) {
        let mut request = Request::get(target);
        for host in named {
            request = request.header(HOST, *host);
        }
        let request = request.body(()).expect("a request");
        let address = address.parse().expect("an address");
        assert_eq!(hosts.allow(address, &request), expected, "{named:?} at {address}{target}");
    }

    #[test]
    fn a_loopback_address_answers_for_this_machine_only() {
        let hosts = Hosts::new(&[]);
        let check = |named: &[&str], expected: bool| {
            for address in ["127.0.0.1:8081", "[::1]:8081", "127.9.9.9:1", "[::ffff:127.0.0.1]:1"] {
                check(&hosts, address, "/v1/sql", named, expected);
            }
            check(&hosts, "0.0.0.0:8081", "/v1/sql", named, true);
            check(&hosts, "192.0.2.1:8081", "/v1/sql", named, true);
        };
        check(&["localhost"], true);
        check(&["LocalHost:8081"], true);
        check(&["127.0.0.1:8081"], true);
        check(&["127.0.0.2"], true);
        check(&["[::1]:8081"], true);
        check(&["[::1]"], true);
        check(&[], true);
        check(&["evil.example"], false);
        check(&["evil.example:8081"], false);
        check(&["localhost.evil.example"], false);
        check(&["127.0.0.1.evil.example"], false);
        check(&["192.0.2.1"], false);
        check(&["[2001:db8::1]:8081"], false);
        check(&[""], false);
        check(&["localhost@evil.example"], false);
        check(&["evil.example@localhost"], false);
        check(&["localhost", "evil.example"], false);
    }

    #[test]
    fn the_target_names_a_host_too() {
        let hosts = Hosts::new(&[]);
        check(&hosts, "127.0.0.1:1", "http://localhost/v1/sql", &["localhost"], true);
        check(&hosts, "127.0.0.1:1", "http://evil.example/v1/sql", &["localhost"], false);
    }

    #[test]
    fn operators_allow_hosts_and_then_no_others_anywhere() {
        let hosts = Hosts::new(&["stats.example".to_owned(), "192.0.2.1".to_owned()]);
        for address in ["127.0.0.1:1", "0.0.0.0:1"] {
            check(&hosts, address, "/", &["Stats.Example:443"], true);
            check(&hosts, address, "/", &["192.0.2.1:80"], true);
            check(&hosts, address, "/", &["localhost"], true);
            check(&hosts, address, "/", &["evil.example"], false);
            check(&hosts, address, "/", &["a.stats.example"], false);
        }
    }

    #[test]
    fn what_everybody_may_read_is_not_looked_at() {
        let hosts = Hosts::of_admin_endpoint(&[]);
        check(&hosts, "127.0.0.1:1", "/v1/events", &["shop.example"], true);
        for page in ["/metrics", "/readyz", "/livez/"] {
            check(&hosts, "127.0.0.1:1", page, &["shop.example"], false);
            check(&hosts, "127.0.0.1:1", page, &["localhost"], true);
        }
    }
}
