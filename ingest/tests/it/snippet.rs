//! The script that pages load.

use crate::support::{Service, gzip, send};

#[tokio::test]
async fn the_script_is_small_and_a_browser_that_has_it_is_told_so() {
    let service = Service::start().await;
    let first = service.get("/weir.js").await;
    assert_eq!((first.status, first.header("content-type")), (200, Some("text/javascript; charset=utf-8")), "{first:?}");
    assert_eq!(first.header("access-control-allow-origin"), Some("*"));
    let tag = first.header("etag").expect("a tag").to_owned();
    assert!(gzip(first.body.as_bytes()).len() < 2_048, "{} bytes", gzip(first.body.as_bytes()).len());

    let again = send(service.address(), "GET", "/weir.js", &[("If-None-Match", &tag)], b"").await;
    assert_eq!((again.status, again.body.len()), (304, 0), "{again:?}");
    let other = send(service.address(), "GET", "/weir.js", &[("If-None-Match", "\"another\"")], b"").await;
    assert_eq!((other.status, &other.body), (200, &first.body));
    assert_eq!(send(service.address(), "POST", "/weir.js", &[], b"{}").await.status, 405);
}
