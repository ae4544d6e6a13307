//! Numbered events as a stream that resumes: one shape for names, groups, presences and children.

use std::{future::Future, ops::RangeInclusive, sync::Arc};

use axum::{http::HeaderMap, response::Response};
use purlin::dist::{
    Event, Missed, Watch,
    supervisor::events::{Events, Happened},
};
use purlin_core::Incarnation;

use super::events::place_of;
use crate::{
    app::{App, StreamPlace},
    problem::Problem,
    shapes::{GapReport, ReadyReport},
    sse::{self, Frames, Next, Source},
    timeline::Place,
};

/// Events with numbers that a reader follows.
pub(super) trait Story: Send + 'static {
    /// One event.
    type Event: Send + Sync;
    /// Waits for the next.
    fn next(&mut self) -> impl Future<Output = Result<Arc<Self::Event>, Missed>> + Send;
    /// The next, if it has happened.
    fn try_next(&mut self) -> Option<Result<Arc<Self::Event>, Missed>>;
    /// The number of the last event read.
    fn revision(&self) -> u64;
    /// The number of an event.
    fn number(event: &Self::Event) -> u64;
}

impl Story for Watch {
    type Event = Event;

    fn next(&mut self) -> impl Future<Output = Result<Arc<Event>, Missed>> + Send {
        Self::next(self)
    }

    fn try_next(&mut self) -> Option<Result<Arc<Event>, Missed>> {
        Self::try_next(self)
    }

    fn revision(&self) -> u64 {
        Self::revision(self)
    }

    fn number(event: &Event) -> u64 {
        event.revision
    }
}

impl Story for Events {
    type Event = Happened;

    fn next(&mut self) -> impl Future<Output = Result<Arc<Happened>, Missed>> + Send {
        Self::next(self)
    }

    fn try_next(&mut self) -> Option<Result<Arc<Happened>, Missed>> {
        Self::try_next(self)
    }

    fn revision(&self) -> u64 {
        Self::revision(self)
    }

    fn number(happened: &Happened) -> u64 {
        happened.revision
    }
}

/// How an event with an id is told.
type Write<E> = fn(&mut Frames, &str, &E);

/// Follows a story. `known` is from where one begins who has seen nothing, to the latest number.
pub(super) fn follow<S: Story>(
    app: &Arc<App>,
    headers: &HeaderMap,
    known: RangeInclusive<u64>,
    story: impl FnOnce(u64) -> S,
    write: Write<S::Event>,
) -> Result<Response, Problem> {
    let stream_place = app.stream_place()?;
    let me = app.host.id().incarnation;
    let place = place_of(app, headers)?;
    let after = match place {
        Place::After(seq) => seq.min(*known.end()),
        Place::Start => *known.start(),
        Place::OtherLife => *known.end(),
    };
    let story = story(after);
    let is_begun = false;
    let source = Following { story, me, place, is_begun, write, _place: stream_place };
    Ok(sse::respond(source, app.closing.clone()))
}

/// One reader.
struct Following<S: Story> {
    story: S,
    me: Incarnation,
    place: Place,
    is_begun: bool,
    write: Write<S::Event>,
    _place: StreamPlace,
}

impl<S: Story> Following<S> {
    fn begin(&mut self, frames: &mut Frames) {
        self.is_begun = true;
        if self.place == Place::OtherLife {
            let reason = "restarted".to_owned();
            frames.json("gap", None, &GapReport { reason, missed: None });
        }
        let revision = self.story.revision();
        let id = format!("{}.{revision}", self.me);
        frames.json("ready", Some(&id), &ReadyReport { revision });
    }

    fn write(&self, frames: &mut Frames, next: Result<Arc<S::Event>, Missed>) {
        match next {
            Ok(event) => {
                let id = format!("{}.{}", self.me, S::number(&event));
                (self.write)(frames, &id, &event);
            }
            Err(missed) => {
                let gone = Some(missed.last - missed.first + 1);
                let reason = "forgotten".to_owned();
                frames.json("gap", None, &GapReport { reason, missed: gone });
            }
        }
    }
}

impl<S: Story> Source for Following<S> {
    async fn fill(&mut self, frames: &mut Frames) -> Next {
        if !self.is_begun {
            self.begin(frames);
            return Next::More;
        }
        let next = self.story.next().await;
        self.write(frames, next);
        while !frames.is_full()
            && let Some(next) = self.story.try_next()
        {
            self.write(frames, next);
        }
        Next::More
    }
}
