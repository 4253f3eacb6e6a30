//! How sockets end without a reset. What a process closes while bytes for it lie unread, or while connections wait to be taken, the system
//! answers with a reset: the client then knows nothing of its request, and may lose an answer that was sent before.

use std::io;
use std::time::Duration;

use socket2::{SockFilter, SockRef};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// How long a client has to close its side after ours, and how much it may still send.
const CLIENTS_END_MAX: Duration = Duration::from_millis(500);
const CLIENTS_REST_MAX: usize = 256 * 1024;

/// Classic BPF, as the kernel reads it: what of a segment a socket takes. Source: Linux, filter.txt; RFC 9293, flags in byte 13 of the header.
const BYTE_13: SockFilter = SockFilter::new(0x30, 0, 0, 13);
const ONLY_SYN_AND_ACK: SockFilter = SockFilter::new(0x54, 0, 0, 0x12);
const IS_SYN_ALONE: SockFilter = SockFilter::new(0x15, 0, 1, 0x02);
const DROP: SockFilter = SockFilter::new(0x06, 0, 0, 0);
const TAKE: SockFilter = SockFilter::new(0x06, 0, 0, u32::MAX);

/// Lets no further connection begin at a listener. Those that have begun still become connections, which can be taken. Whoever comes later is
/// asked for nothing, tries again after a second, and then meets nobody, or the next process.
/// # Errors
/// As the system says; then connections go on to begin.
pub(crate) fn take_no_more(listener: &TcpListener) -> io::Result<()> {
    SockRef::from(listener).attach_filter(&[BYTE_13, ONLY_SYN_AND_ACK, IS_SYN_ALONE, DROP, TAKE])
}

/// Reads what the client still sends after our side was closed, until it closes its own; a while, and no endless bytes.
pub(crate) async fn until_client_ends(stream: &mut TcpStream) {
    let reading = async {
        // Each connection has room for it from its beginning on.
        let (mut rest, mut read) = ([0; 256], 0);
        while read < CLIENTS_REST_MAX {
            match stream.read(&mut rest).await {
                Ok(bytes @ 1..) => read += bytes,
                Ok(0) | Err(_) => return,
            }
        }
    };
    // After that it is reset, as any client that does not listen.
    let _ = timeout(CLIENTS_END_MAX, reading).await;
}
