//! One reader's place in the story of the cluster, as the answering node learned it.
//!
//! Every event has an id, `incarnation.seq`. A reader that comes back names the last one it saw and
//! gets exactly what followed, as long as the node remembers it; otherwise a `gap` says so. The
//! story is kept in memory only: after a restart the incarnation in the id differs, and the reader
//! learns of that too.

use purlin_cluster::{
    swim::{Event, State},
    view::{ClusterEvent, Events, Missed},
};
use purlin_core::Incarnation;

use crate::{
    shapes::{EventReport, GapReport},
    sse::Frames,
};

/// Where a reader that saw `id` last goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// It is new: from the oldest event that is remembered.
    Start,
    /// After this event of this life.
    After(u64),
    /// Its id is of another life of this node: from the start, after saying so.
    OtherLife,
}

impl Place {
    /// Reads a `Last-Event-ID`; `None` if it is no id of ours.
    pub(crate) fn parse(id: &str, me: Incarnation) -> Option<Self> {
        let (incarnation, seq) = id.split_once('.')?;
        let (incarnation, seq): (u64, u64) = (incarnation.parse().ok()?, seq.parse().ok()?);
        Some(if incarnation == me.0 { Self::After(seq) } else { Self::OtherLife })
    }

    /// The number of the last event that is not wanted.
    pub(crate) fn seq(self) -> u64 {
        match self {
            Self::Start | Self::OtherLife => 0,
            Self::After(seq) => seq,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct TimelineReader {
    events: Events,
    me: Incarnation,
    place: Place,
}

impl TimelineReader {
    /// Goes on at `place` in the story of the node's life `me`; `events` must stand there.
    pub(crate) fn new(events: Events, me: Incarnation, place: Place) -> Self {
        Self { events, me, place }
    }

    /// Appends what is known already; events are named `name`, or each by its kind.
    pub(crate) fn write(&mut self, frames: &mut Frames, name: Option<&str>) {
        if self.place == Place::OtherLife {
            frames.json("gap", None, &GapReport { reason: "restarted".to_owned(), missed: None });
            self.place = Place::Start;
        }
        while !frames.is_full()
            && let Some(next) = self.events.try_next()
        {
            self.write_one(frames, name, next);
        }
    }

    /// Waits for the next event.
    ///
    /// # Cancel safety
    /// Skips none when dropped.
    pub(crate) async fn next(&mut self) -> Result<ClusterEvent, Missed> {
        self.events.next().await
    }

    /// Appends what [`TimelineReader::next`] gave.
    pub(crate) fn write_one(
        &mut self,
        frames: &mut Frames,
        name: Option<&str>,
        next: Result<ClusterEvent, Missed>,
    ) {
        match next {
            Ok(event) => {
                let report = event_report(&event);
                let id = format!("{}.{}", self.me, event.seq);
                frames.json(name.unwrap_or(&report.kind), Some(&id), &report);
            }
            // Nobody who begins at the beginning was promised the beginning.
            Err(_) if self.place == Place::Start => {}
            Err(missed) => {
                let missed = missed.last - missed.first + 1;
                frames.json(
                    "gap",
                    None,
                    &GapReport { reason: "forgotten".to_owned(), missed: Some(missed) },
                );
            }
        }
        self.place = Place::After(0);
    }
}

fn event_report(event: &ClusterEvent) -> EventReport {
    let node = event.what.node();
    let name = &node.name;
    let (text, detail, tone) = match &event.what {
        Event::Joined { .. } => {
            (format!("{name} joined"), Some(format!("incarnation {}", node.incarnation)), "alive")
        }
        Event::Suspected { by, .. } => (
            format!("{name} is suspect"),
            by.as_ref().map(|by| format!("{by} gets no answer from it")),
            "suspect",
        ),
        Event::Refuted { was: State::Down, .. } => {
            (format!("{name} is back"), Some("it had been down".to_owned()), "alive")
        }
        Event::Refuted { .. } => (format!("{name} refuted the suspicion"), None, "alive"),
        Event::Down { why, .. } => {
            (format!("{name} is down"), Some(why_sentence(why.as_str()).to_owned()), "down")
        }
        Event::Left { .. } => (format!("{name} left"), None, "left"),
        Event::MetaChanged { .. } => {
            (format!("{name} says something new of itself"), None, "plain")
        }
        Event::Draining { .. } => {
            (format!("{name} drains"), Some("it takes no new work".to_owned()), "left")
        }
    };
    EventReport {
        seq: event.seq,
        at_ms: event.at.as_millis(),
        kind: event.what.as_str().to_owned(),
        node: Some(name.to_string()),
        incarnation: Some(node.incarnation.0),
        epoch: event.epoch.0,
        text,
        detail,
        tone: tone.to_owned(),
    }
}

fn why_sentence(why: &str) -> &str {
    match why {
        "silent" => "nobody got an answer from it",
        "refused" => "its connections were reset and its address refuses new ones",
        "superseded" => "a newer incarnation of it has joined",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_this_life_resumes_and_one_of_another_starts_over() {
        let me = Incarnation(9);
        assert_eq!(Place::parse("9.3", me), Some(Place::After(3)));
        assert_eq!(Place::parse("8.77", me), Some(Place::OtherLife));
        for junk in ["", "9", "9.", ".1", "x.y", "9.1.1", "-9.1", "9 .1"] {
            assert_eq!(Place::parse(junk, me), None, "{junk:?}");
        }
    }
}
