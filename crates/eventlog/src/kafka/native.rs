//! The glue to Kafka's C library, for what its Rust wrapper does not show: the ids of a cluster and of a topic, and whether a
//! record that failed may be there all the same. The only file of the workspace that may contain `unsafe` code.
//!
//! What holds here, and why it suffices:
//!
//! - The client's pointer comes from a [`Client`] that is borrowed for the whole call, so the handle outlives all that is made from it.
//! - Each object that the library gives away has one owner, [`Owned`], which destroys it once. Owners are declared in such an
//!   order that a queue and its events go before the client could.
//! - What lies inside an event (results, descriptions, ids, texts) is read and copied while its event is owned, and no such pointer
//!   leaves the function that got it. Null is checked wherever the library may return it.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char};
use std::time::{Duration, Instant};

use rdkafka::client::{Client, ClientContext};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka_sys as sys;
use uuid::Uuid;

/// What a broker says about a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Topic {
    /// Made by the cluster with the topic; nil if the broker is too old to know ids.
    pub(super) id: Uuid,
    pub(super) partitions: u32,
    /// Partitions that have no leader now.
    pub(super) leaderless: u32,
}

/// Why nothing was said.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub(super) code: RDKafkaErrorCode,
    pub(super) text: String,
}

impl Refused {
    fn local(text: &str) -> Self {
        Refused { code: RDKafkaErrorCode::Fail, text: text.to_owned() }
    }
}

/// An object of the library that is destroyed when it is dropped.
struct Owned<T> {
    pointer: *mut T,
    destroy: unsafe extern "C" fn(*mut T),
}

impl<T> Owned<T> {
    /// # Safety
    /// `pointer` is null, or owned by the caller and destroyed by `destroy`.
    unsafe fn new(pointer: *mut T, destroy: unsafe extern "C" fn(*mut T)) -> Option<Self> {
        (!pointer.is_null()).then_some(Owned { pointer, destroy })
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: by the contract of `new` the pointer is ours, and this is the only place that gives it up.
        unsafe { (self.destroy)(self.pointer) }
    }
}

/// Copies a text of the library. None for null.
/// # Safety
/// `text` is null or points to a text that ends with a zero byte and lives for the length of this call.
unsafe fn copied(text: *const c_char) -> Option<String> {
    // SAFETY: the caller's promise.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// What an admin request needs: a queue for its answer, and its options.
struct Ask {
    queue: Owned<sys::rd_kafka_queue_t>,
    options: Owned<sys::rd_kafka_AdminOptions_t>,
    deadline: Instant,
}

impl Ask {
    fn new<C: ClientContext>(
        client: &Client<C>,
        operation: sys::rd_kafka_admin_op_t,
        wait_max: Duration,
    ) -> Result<Self, Refused> {
        let milliseconds = i32::try_from(wait_max.as_millis()).unwrap_or(i32::MAX).clamp(1, 3_600_000);
        let mut text: [c_char; 256] = [0; 256];
        // SAFETY: the client is borrowed, so its handle is alive; both objects are ours from here on.
        let (queue, options) = unsafe {
            (
                Owned::new(sys::rd_kafka_queue_new(client.native_ptr()), sys::rd_kafka_queue_destroy),
                Owned::new(sys::rd_kafka_AdminOptions_new(client.native_ptr(), operation), sys::rd_kafka_AdminOptions_destroy),
            )
        };
        let (Some(queue), Some(options)) = (queue, options) else { return Err(Refused::local("no memory for a request")) };
        // SAFETY: the options are alive, and the text has the length that is given.
        let code = unsafe {
            sys::rd_kafka_AdminOptions_set_request_timeout(options.pointer, milliseconds, text.as_mut_ptr(), text.len())
        };
        if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(Refused { code: code.into(), text: "the time limit of a request was refused".to_owned() });
        }
        // The library answers within the limit; the second is for its answer to arrive.
        Ok(Ask { queue, options, deadline: Instant::now() + wait_max + Duration::from_secs(1) })
    }

    /// Waits for the event that answers, skipping others.
    fn answer(&self, kind: sys::rd_kafka_event_type_t) -> Result<Owned<sys::rd_kafka_event_t>, Refused> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let milliseconds = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
            // SAFETY: the queue is alive; an event that it gives is ours.
            let event =
                unsafe { Owned::new(sys::rd_kafka_queue_poll(self.queue.pointer, milliseconds), sys::rd_kafka_event_destroy) };
            let Some(event) = event else {
                if left.is_zero() {
                    return Err(Refused { code: RDKafkaErrorCode::OperationTimedOut, text: "no answer in time".to_owned() });
                }
                continue;
            };
            // SAFETY: the event is alive until it is dropped; its text is copied before.
            let (found, code, text) = unsafe {
                (
                    sys::rd_kafka_event_type(event.pointer),
                    sys::rd_kafka_event_error(event.pointer),
                    copied(sys::rd_kafka_event_error_string(event.pointer)),
                )
            };
            if found != kind {
                continue;
            }
            if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Err(Refused { code: code.into(), text: text.unwrap_or_default() });
            }
            return Ok(event);
        }
    }
}

/// Asks a broker which topic bears a name now. Blocks, for `wait_max` and a second at most.
/// # Errors
/// [`Refused`], with the code `UnknownTopicOrPartition` if the broker knows no such topic.
pub(super) fn describe_topic<C: ClientContext>(client: &Client<C>, topic: &str, wait_max: Duration) -> Result<Topic, Refused> {
    let name = CString::new(topic).map_err(|_| Refused::local("a topic's name has no zero byte"))?;
    let ask = Ask::new(client, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, wait_max)?;
    let mut names = [name.as_ptr()];
    // SAFETY: the library copies the names; the collection is ours.
    let topics = unsafe {
        Owned::new(
            sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len()),
            sys::rd_kafka_TopicCollection_destroy,
        )
    };
    let topics = topics.ok_or_else(|| Refused::local("no memory for a request"))?;
    // SAFETY: client, topics, options and queue are alive; the library copies what it keeps.
    unsafe { sys::rd_kafka_DescribeTopics(client.native_ptr(), topics.pointer, ask.options.pointer, ask.queue.pointer) };
    let event = ask.answer(sys::RD_KAFKA_EVENT_DESCRIBETOPICS_RESULT)?;
    // SAFETY: the event is alive to the end of this function, and with it the result, its descriptions and all they point
    // to. The arrays have as many elements as the library says, and null is checked.
    unsafe {
        let result = sys::rd_kafka_event_DescribeTopics_result(event.pointer);
        if result.is_null() {
            return Err(Refused::local("an answer without a result"));
        }
        let mut count = 0;
        let descriptions = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        if descriptions.is_null() || count != 1 || (*descriptions).is_null() {
            return Err(Refused::local("an answer without the topic"));
        }
        let description = *descriptions;
        let error = sys::rd_kafka_TopicDescription_error(description);
        let code = sys::rd_kafka_error_code(error);
        if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(Refused { code: code.into(), text: copied(sys::rd_kafka_error_string(error)).unwrap_or_default() });
        }
        let id = sys::rd_kafka_TopicDescription_topic_id(description);
        let id = if id.is_null() {
            Uuid::nil()
        } else {
            let most = sys::rd_kafka_Uuid_most_significant_bits(id) as u64;
            Uuid::from_u64_pair(most, sys::rd_kafka_Uuid_least_significant_bits(id) as u64)
        };
        let mut count = 0;
        let partitions = sys::rd_kafka_TopicDescription_partitions(description, &mut count);
        let mut leaderless = 0;
        for place in 0..count {
            let leader = sys::rd_kafka_TopicPartitionInfo_leader(*partitions.add(place));
            if leader.is_null() || sys::rd_kafka_Node_id(leader) < 0 {
                leaderless += 1;
            }
        }
        Ok(Topic { id, partitions: u32::try_from(count).unwrap_or(u32::MAX), leaderless })
    }
}

/// Asks a broker for the id of its cluster, afresh each time. Blocks, for `wait_max` at most.
///
/// By the plain question for metadata, not by `DescribeCluster`: a broker that just started names no brokers, and the library
/// (2.12.1) then ends the whole process by an assertion.
/// # Errors
/// [`Refused`], also if the cluster has no id.
pub(super) fn cluster_id<C: ClientContext>(client: &Client<C>, wait_max: Duration) -> Result<String, Refused> {
    let milliseconds = i32::try_from(wait_max.as_millis()).unwrap_or(i32::MAX);
    let mut metadata = std::ptr::null();
    // SAFETY: the client is borrowed, so its handle is alive; what the library gives away is destroyed once, at once.
    let code = unsafe {
        let code = sys::rd_kafka_metadata(client.native_ptr(), 0, std::ptr::null_mut(), &mut metadata, milliseconds);
        if !metadata.is_null() {
            sys::rd_kafka_metadata_destroy(metadata);
        }
        code
    };
    if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        let code = RDKafkaErrorCode::from(code);
        return Err(Refused { code, text: format!("the cluster does not say its id: {code}") });
    }
    // SAFETY: as before; the text is ours, copied and given back. The answer that just came has set it, so nothing is waited for.
    let id = unsafe {
        let id = sys::rd_kafka_clusterid(client.native_ptr(), 0);
        let copy = copied(id);
        sys::rd_kafka_mem_free(client.native_ptr(), id.cast());
        copy
    };
    id.filter(|id| !id.is_empty()).ok_or_else(|| Refused::local("the cluster has no id"))
}

/// Gives a client brokers to begin with, as its bootstrap servers are; those that it has stay.
pub(super) fn add_brokers<C: ClientContext>(client: &Client<C>, servers: &str) {
    let Ok(servers) = CString::new(servers) else { return }; // no client was made from such a text
    // SAFETY: the client is borrowed, so its handle is alive; the library copies the text.
    unsafe { sys::rd_kafka_brokers_add(client.native_ptr(), servers.as_ptr()) };
}

/// Returns whether a record that was reported as failed is certainly not in the log: it was never sent, or each broker that
/// got it refused it.
pub(super) fn is_absent(message: &BorrowedMessage<'_>) -> bool {
    // SAFETY: the message is borrowed, so it is alive; the library only reads it.
    let status = unsafe { sys::rd_kafka_message_status(message.ptr()) };
    status == sys::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED
}
