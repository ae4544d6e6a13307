//! One connection out of two dials: the tie-break, as a pure state machine.
//!
//! Both nodes may dial, because a firewall may let only one direction through, and they often dial
//! at once. Choosing at the acceptor alone fails: each side may choose another connection and data
//! sent on the loser is gone. So a welcome is only an offer; the *dialler* confirms, data flows
//! after the confirmation, and a dialler that knows a better connection refuses its own.
//!
//! The rule: the dial of the node with the smaller name is *preferred*. Its dialler confirms as
//! soon as it is welcome. The other dialler confirms too, unless it has welcomed a preferred dial
//! that is still undecided; then it waits for that one. A preferred dial that never arrives (its
//! direction is black-holed) is never welcomed, so nobody waits for it.
//!
//! # Source
//! The name comparison is how Erlang distribution settles simultaneous connects; the confirmation
//! step is ours, so that no data is ever sent on a connection the other side drops.

/// A connection's number, drawn at random by its dialler.
pub(crate) type ConnectionNumber = u64;

/// What a side has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Answer the hello on this connection with a welcome and wait for its confirmation.
    Welcome(ConnectionNumber),
    /// Answer the hello on this connection with [`crate::handshake::RefusalCode::Duplicate`].
    RefuseDuplicate(ConnectionNumber),
    /// Confirm this dial of ours and use it.
    Confirm(ConnectionNumber),
    /// Use this confirmed connection.
    Use(ConnectionNumber),
    /// Hold this welcomed dial of ours until told otherwise.
    Hold(ConnectionNumber),
    /// Drop this connection; it was never used.
    Drop(ConnectionNumber),
    /// Close this connection: the peer has none such any more.
    Replace(ConnectionNumber),
}

/// The state of one link: one of the parallel connections of a channel to a peer.
#[derive(Debug, Default)]
pub(crate) struct Link {
    /// Whether our dials are preferred over the peer's.
    preferred: bool,
    /// The connection in use.
    used: Option<ConnectionNumber>,
    /// The last connection that was in use; zero for none.
    last: ConnectionNumber,
    /// The peer's dial that we welcomed and that is not confirmed.
    welcomed: Option<ConnectionNumber>,
    /// Our dial that was welcomed and waits for the peer's to be decided.
    held: Option<ConnectionNumber>,
}

impl Link {
    pub(crate) fn new(preferred: bool) -> Self {
        Self { preferred, ..Self::default() }
    }

    pub(crate) fn used(&self) -> Option<ConnectionNumber> {
        self.used
    }

    /// What a hello of ours says about the past.
    pub(crate) fn last(&self) -> ConnectionNumber {
        self.last
    }

    /// The peer dialled; `peer_last` is the last connection it knows of.
    pub(crate) fn on_hello(
        &mut self,
        number: ConnectionNumber,
        peer_last: ConnectionNumber,
        out: &mut Vec<Order>,
    ) {
        if let Some(used) = self.used {
            if peer_last != used {
                // The peer dialled before it learnt of the one in use; its confirmation is on the
                // way, or this side will notice that the connection is dead.
                out.push(Order::RefuseDuplicate(number));
                return;
            }
            // It had the one in use and dials again: it lost it.
            self.used = None;
            out.push(Order::Replace(used));
        }
        if let Some(before) = self.welcomed.replace(number) {
            out.push(Order::Drop(before));
        }
        out.push(Order::Welcome(number));
    }

    /// The peer welcomed our dial.
    pub(crate) fn on_welcome(&mut self, number: ConnectionNumber, out: &mut Vec<Order>) {
        if self.used.is_some() {
            out.push(Order::Drop(number));
        } else if self.welcomed.is_some() && !self.preferred {
            if let Some(before) = self.held.replace(number) {
                out.push(Order::Drop(before));
            }
            out.push(Order::Hold(number));
        } else {
            self.confirm(number, out);
        }
    }

    /// The peer confirmed its dial.
    pub(crate) fn on_confirm(&mut self, number: ConnectionNumber, out: &mut Vec<Order>) {
        if self.welcomed != Some(number) {
            out.push(Order::Drop(number));
            return;
        }
        self.welcomed = None;
        self.take_up(number);
        out.push(Order::Use(number));
        if let Some(held) = self.held.take() {
            out.push(Order::Drop(held));
        }
    }

    /// A connection is gone, whatever it was.
    pub(crate) fn on_gone(&mut self, number: ConnectionNumber, out: &mut Vec<Order>) {
        if self.used == Some(number) {
            self.used = None;
        }
        if self.held == Some(number) {
            self.held = None;
        }
        if self.welcomed == Some(number) {
            self.welcomed = None;
            if let Some(held) = self.held.take() {
                self.confirm(held, out);
            }
        }
    }

    fn confirm(&mut self, number: ConnectionNumber, out: &mut Vec<Order>) {
        self.take_up(number);
        out.push(Order::Confirm(number));
        if let Some(theirs) = self.welcomed.take() {
            out.push(Order::Drop(theirs));
        }
    }

    fn take_up(&mut self, number: ConnectionNumber) {
        assert_eq!(self.used, None, "a link uses one connection at a time");
        self.used = Some(number);
        self.last = number;
    }
}

#[cfg(test)]
mod tests;
