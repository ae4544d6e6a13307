//! Our contender for calls and casts: one server, used on one node and across two.
//!
//! Written in the trait form, which is what `#[purlin::server]` expands to.

use purlin_process::{
    Context, Envelope, ExitReason, Handle, Inbound, Message, MessageKind, RemoteServer, Server,
    Undelivered,
};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Adds what it is sent, and counts what it is only shown.
#[derive(Debug)]
pub(crate) struct Adder(u64);

/// Adds, and answers the new sum.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Add(pub(crate) u64);

/// 16 bytes that come back; counts as one.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Echo(pub(crate) Payload);

/// 16 bytes that are counted as one.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Count(pub(crate) Payload);

/// Opaque bytes, as the peers send them: copied whole, where serde would take an array of `u8` for
/// a tuple of sixteen numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Payload(pub(crate) [u8; 16]);

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = <&[u8]>::deserialize(deserializer)?;
        bytes
            .try_into()
            .map(Self)
            .map_err(|_other_length| D::Error::invalid_length(bytes.len(), &"16 bytes"))
    }
}

impl Message for Add {
    type Reply = u64;
    const NAME: &'static str = "Adder.add";
}

impl Message for Echo {
    type Reply = Payload;
    const NAME: &'static str = "Adder.echo";
}

impl Message for Count {
    type Reply = ();
    const NAME: &'static str = "Adder.count";
}

impl Server for Adder {
    const KIND: &'static str = "Adder";
    type Args = ();

    async fn init((): (), _: &mut Context<Self>) -> Result<Self, ExitReason> {
        Ok(Self(0))
    }
}

impl Handle<Add> for Adder {
    async fn handle(&mut self, Add(amount): Add, _: &mut Context<Self>) -> u64 {
        self.0 += amount;
        self.0
    }

    fn handle_now(&mut self, Add(amount): Add, _: &mut Context<Self>) -> Result<u64, Add> {
        self.0 += amount;
        Ok(self.0)
    }
}

impl Handle<Echo> for Adder {
    async fn handle(&mut self, Echo(payload): Echo, _: &mut Context<Self>) -> Payload {
        self.0 += 1;
        payload
    }

    fn handle_now(&mut self, Echo(payload): Echo, _: &mut Context<Self>) -> Result<Payload, Echo> {
        self.0 += 1;
        Ok(payload)
    }
}

impl Handle<Count> for Adder {
    async fn handle(&mut self, Count(payload): Count, _: &mut Context<Self>) {
        self.0 += u64::from(payload.0 != [0; 16]);
    }

    fn handle_now(&mut self, Count(payload): Count, _: &mut Context<Self>) -> Result<(), Count> {
        self.0 += u64::from(payload.0 != [0; 16]);
        Ok(())
    }
}

impl RemoteServer for Adder {
    fn receive(
        kind: MessageKind,
        payload: &[u8],
        inbound: Inbound,
    ) -> Result<Envelope<Self>, Undelivered> {
        match kind {
            Add::KIND => inbound.decode::<Self, Add>(payload),
            Echo::KIND => inbound.decode::<Self, Echo>(payload),
            Count::KIND => inbound.decode::<Self, Count>(payload),
            _ => Err(inbound.unknown::<Self>(kind)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Payload;
    use purlin_process::Encode as _;

    #[test]
    fn a_payload_travels_whole() {
        let mut encoded = Vec::new();
        Payload([7; 16]).encode(&mut encoded).unwrap();
        assert_eq!(encoded.len(), 17, "a length and the bytes");
    }
}
