//! Texts: what people see. The laws of joins are in `laws.rs`; here: characters keep their places,
//! concurrent runs never mix, nothing is lost, and long texts stay cheap.

#![expect(clippy::unwrap_used, reason = "a test that cannot build its input should fail loudly")]

use proptest::prelude::*;
use purlin_crdt::{
    Delta, Lattice, Text, TextError, TextStore,
    text::{BUNCHES_MAX, TEXT_BYTES_MAX},
};

type Doc = Text<u8>;
type Update = Delta<u8, TextStore<u8>>;

/// Joins both ways.
fn meet(a: &mut Doc, b: &mut Doc) {
    a.join(b);
    b.join(a);
    assert_eq!(a, b);
    assert_eq!(a.to_string(), b.to_string());
}

#[derive(Debug, Clone)]
enum Step {
    /// Where, as a share of the length, and how many characters.
    Insert(u8, u16, u8),
    Delete(u8, u16, u8),
    Join(u8, u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = 0..3_u8;
    let step = prop_oneof![
        4 => (who.clone(), any::<u16>(), 1..6_u8).prop_map(|(who, at, n)| Step::Insert(who, at, n)),
        // At the ends and where one was last, as people do.
        2 => (who.clone(), prop_oneof![Just(0), Just(u16::MAX)], 1..3_u8)
            .prop_map(|(who, at, n)| Step::Insert(who, at, n)),
        2 => (who.clone(), any::<u16>(), 1..8_u8).prop_map(|(who, at, n)| Step::Delete(who, at, n)),
        2 => (who.clone(), who).prop_map(|(to, from)| Step::Join(to, from)),
    ];
    prop::collection::vec(step, 0..60)
}

fn scaled(at: u16, to: usize) -> usize {
    usize::from(at) * to / usize::from(u16::MAX)
}

/// Whether `part` is `whole` with characters left out.
fn is_subsequence(part: &[char], whole: &[char]) -> bool {
    let mut rest = whole.iter();
    part.iter().all(|one| rest.any(|other| other == one))
}

/// Every character is another one, so that a text says where each of them is.
fn fresh(next: &mut u32, count: u8) -> String {
    (0..count)
        .map(|_| {
            *next += 1;
            char::from_u32(0x4e00 + *next).unwrap()
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn characters_keep_their_places_and_only_knowing_deletes_take_them(steps in steps()) {
        let mut docs = vec![Doc::default(); 3];
        let mut next = 0;
        let (mut inserted, mut deleted) = (Vec::new(), Vec::new());
        let mut looks: Vec<Vec<char>> = Vec::new();
        for step in &steps {
            match *step {
                Step::Insert(who, at, count) => {
                    let doc = &mut docs[usize::from(who)];
                    let (text, at) = (fresh(&mut next, count), scaled(at, doc.chars()));
                    let mut expected: Vec<char> = doc.to_string().chars().collect();
                    expected.splice(at..at, text.chars());
                    inserted.extend(text.chars());
                    drop(doc.insert(&who, at, &text).unwrap());
                    prop_assert_eq!(doc.to_string(), expected.iter().collect::<String>());
                }
                Step::Delete(who, at, count) => {
                    let doc = &mut docs[usize::from(who)];
                    let begin = scaled(at, doc.chars());
                    let end = doc.chars().min(begin + usize::from(count));
                    let mut expected: Vec<char> = doc.to_string().chars().collect();
                    deleted.extend(expected.drain(begin..end));
                    drop(doc.delete(begin..end).unwrap());
                    prop_assert_eq!(doc.to_string(), expected.iter().collect::<String>());
                }
                Step::Join(to, from) => {
                    let from = docs[usize::from(from)].clone();
                    docs[usize::from(to)].join(&from);
                }
            }
            for doc in &docs {
                let text: Vec<char> = doc.to_string().chars().collect();
                prop_assert_eq!(doc.chars(), text.len());
                prop_assert_eq!(doc.store().bytes(), text.iter().map(|c| c.len_utf8()).sum::<usize>());
                // The order kept up with changes is the order derived anew.
                let bytes = postcard::to_stdvec(doc.store()).unwrap();
                let anew: TextStore<u8> = postcard::from_bytes(&bytes).unwrap();
                prop_assert_eq!(anew.to_string(), doc.to_string());
                prop_assert_eq!((anew.chars(), anew.bytes()), (doc.chars(), doc.store().bytes()));
                looks.push(text);
            }
        }
        let mut all = docs[0].clone();
        docs.iter().for_each(|doc| all.join(doc));
        let end: Vec<char> = all.to_string().chars().collect();
        let mut expected: Vec<char> = inserted.into_iter().filter(|it| !deleted.contains(it)).collect();
        let mut read = end.clone();
        expected.sort_unstable();
        read.sort_unstable();
        prop_assert_eq!(read, expected, "what nobody deleted knowingly is there, and nothing else");
        for look in looks {
            let left: Vec<char> = look.into_iter().filter(|it| end.contains(it)).collect();
            prop_assert!(is_subsequence(&left, &end), "{left:?} in {end:?}");
        }
    }

    #[test]
    fn runs_typed_at_one_place_at_the_same_time_never_mix(
        before in 0..4_usize, after in 0..4_usize,
        backward in prop::collection::vec(any::<bool>(), 3), lengths in prop::collection::vec(1..70_usize, 3),
        others in any::<bool>(),
    ) {
        let mut start = Doc::default();
        drop(start.insert(&9, 0, &"<>".repeat(4)).unwrap());
        let at = 4;
        // What stands there may have been deleted on the one or the other side.
        drop(start.delete(at - before..at + after).unwrap());
        let at = at - before;
        let mut docs = Vec::new();
        for who in 0..3_u8 {
            let n = usize::from(who);
            let writer = if others { who } else { 9_u8.saturating_sub(who) };
            let mut doc = start.clone();
            for typed in 0..lengths[n] {
                let place = if backward[n] { at } else { at + typed };
                drop(doc.insert(&writer, place, &char::from(b'a' + who).to_string()).unwrap());
            }
            docs.push(doc);
        }
        let mut all = docs[0].clone();
        docs.iter().for_each(|doc| all.join(doc));
        let text = all.to_string();
        for (n, doc) in docs.iter().enumerate() {
            let run = char::from(b'a' + u8::try_from(n).unwrap()).to_string().repeat(lengths[n]);
            prop_assert!(text.contains(&run), "{run} in {text}");
            prop_assert_eq!(doc.chars(), start.chars() + lengths[n]);
        }
        prop_assert_eq!(all.chars(), start.chars() + lengths.iter().sum::<usize>());
    }

    #[test]
    fn hostile_bytes_are_refused_or_obey_the_laws(
        a in prop::collection::vec(0..5_u8, 0..80), b in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        for (a, b) in [(&a, &b), (&b, &a), (&a, &a)] {
            if let (Ok(mut one), Ok(other)) = (postcard::from_bytes::<Doc>(a), postcard::from_bytes::<Doc>(b)) {
                let mut turned = other.clone();
                turned.join(&one);
                one.join(&other);
                let chars = one.chars();
                let bytes = postcard::to_stdvec(&one).unwrap();
                prop_assert_eq!(&postcard::from_bytes::<Doc>(&bytes).unwrap(), &one);
                drop(one.insert(&1, chars / 2, "x").unwrap());
                prop_assert_eq!(one.chars(), chars + 1);
                drop(one.delete(0..chars + 1).unwrap());
                prop_assert_eq!(one.to_string(), "");
            }
        }
    }

    #[test]
    fn a_damaged_text_is_refused_or_still_a_text(steps in steps(), at in any::<usize>(), bit in 0..8_u8) {
        let mut doc = Doc::default();
        for step in &steps {
            if let Step::Insert(who, at, count) = *step {
                drop(doc.insert(&who, scaled(at, doc.chars()), &"x".repeat(usize::from(count))).unwrap());
            }
        }
        let mut bytes = postcard::to_stdvec(&doc).unwrap();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        if let Ok(mut damaged) = postcard::from_bytes::<Doc>(&bytes) {
            damaged.join(&doc);
            let chars = damaged.chars();
            prop_assert_eq!(damaged.to_string().chars().count(), chars);
            drop(damaged.insert(&7, chars, "!").unwrap());
            prop_assert!(damaged.to_string().ends_with('!'));
        }
    }
}

#[test]
fn two_people_type_at_once_and_each_word_stays_whole() {
    let (mut ada, mut bob) = (Doc::default(), Doc::default());
    drop(ada.insert(&1, 0, "Milk").unwrap());
    meet(&mut ada, &mut bob);
    for (n, letter) in " and Eggs".chars().enumerate() {
        drop(ada.insert(&1, 4 + n, &letter.to_string()).unwrap());
    }
    for (n, letter) in " and Bread".chars().enumerate() {
        drop(bob.insert(&2, 4 + n, &letter.to_string()).unwrap());
    }
    meet(&mut ada, &mut bob);
    let text = ada.to_string();
    assert!(
        ["Milk and Eggs and Bread", "Milk and Bread and Eggs"].contains(&text.as_str()),
        "{text}"
    );
}

#[test]
fn an_insert_into_text_deleted_meanwhile_stays_in_its_place() {
    let (mut ada, mut bob) = (Doc::default(), Doc::default());
    drop(ada.insert(&1, 0, "one two three").unwrap());
    meet(&mut ada, &mut bob);
    drop(ada.delete(4..8).unwrap());
    drop(bob.insert(&2, 7, "-and-a-half").unwrap());
    meet(&mut ada, &mut bob);
    assert_eq!(ada.to_string(), "one -and-a-halfthree");
}

#[test]
fn deltas_alone_do_what_states_do() {
    let mut writer = Doc::default();
    let mut updates: Vec<Update> = Vec::new();
    for (at, text) in [(0, "hello"), (5, " world"), (5, ","), (0, "> "), (0, "> ")] {
        updates.push(writer.insert(&1, at, text).unwrap());
    }
    updates.push(writer.delete(2..4).unwrap());
    assert_eq!(writer.to_string(), "> hello, world");
    let mut reader = Doc::default();
    for update in updates.iter().rev().chain(&updates) {
        let bytes = postcard::to_stdvec(update).unwrap();
        reader.join_delta(&postcard::from_bytes(&bytes).unwrap());
    }
    assert_eq!(reader, writer);
    assert_eq!(reader.to_string(), writer.to_string());
}

#[test]
fn what_does_not_fit_is_refused_with_its_bound_and_changes_nothing() {
    let mut doc = Doc::default();
    drop(doc.insert(&1, 0, "abc").unwrap());
    let before = doc.clone();
    assert_eq!(doc.insert(&1, 4, "x").unwrap_err(), TextError::OutOfRange { at: 4, chars: 3 });
    assert_eq!(doc.delete(2..4).unwrap_err(), TextError::OutOfRange { at: 4, chars: 3 });
    let long = "x".repeat(TEXT_BYTES_MAX - 2);
    assert_eq!(
        doc.insert(&1, 0, &long).unwrap_err(),
        TextError::TooLong { bytes: TEXT_BYTES_MAX + 1 }
    );
    assert_eq!(doc, before);
    drop(doc.insert(&1, 0, "").unwrap());
    assert_eq!(doc, before, "nothing takes no dot");
}

#[test]
fn typing_in_either_direction_and_deleting_again_makes_no_deep_tree_and_keeps_little() {
    let mut doc = Doc::default();
    for n in 0..2_000 {
        drop(doc.insert(&1, n, "x").unwrap());
    }
    for _ in 0..2_000 {
        drop(doc.insert(&1, 0, "line\n").unwrap());
    }
    assert!(doc.store().bunches() < 5, "{} bunches", doc.store().bunches());
    assert_eq!(doc.chars(), 12_000);
    while doc.chars() > 0 {
        let middle = doc.chars() / 2;
        drop(doc.delete(middle..middle + 1).unwrap());
    }
    assert_eq!(doc.to_string(), "");
    assert!(doc.store().bunches() < 5, "{} bunches", doc.store().bunches());
    let bytes = postcard::to_stdvec(doc.store()).unwrap();
    assert!(bytes.len() < 60, "{} bytes of an empty text", bytes.len());
    assert_eq!(doc.context().gaps(), 0);
    let seen = doc.context().clone();
    doc.prune(&seen);
    assert_eq!(doc.store().bunches(), 0);
}

#[test]
fn pruning_what_everybody_has_seen_moves_no_character() {
    let (mut ada, mut bob) = (Doc::default(), Doc::default());
    for n in 0..200 {
        let at = (n * 7) % (ada.chars() + 1);
        drop(ada.insert(&1, at, "ab").unwrap());
        meet(&mut ada, &mut bob);
        let at = (n * 11) % bob.chars();
        drop(bob.delete(at..at + 1).unwrap());
        meet(&mut ada, &mut bob);
    }
    let (text, bunches) = (ada.to_string(), ada.store().bunches());
    let seen = ada.context().clone();
    ada.prune(&seen);
    assert!(ada.store().bunches() < bunches);
    assert_eq!(ada.to_string(), text);
    drop(bob.insert(&2, 50, "here").unwrap());
    meet(&mut ada, &mut bob);
    assert_eq!(ada.to_string().find("here"), Some(50));
}

#[test]
fn writers_that_take_turns_make_a_deep_tree_that_is_still_read() {
    let (mut ada, mut bob) = (Doc::default(), Doc::default());
    for n in 0..1_500 {
        let end = ada.chars();
        let update = ada.insert(&1, end, "a").unwrap();
        bob.join_delta(&update);
        let update = bob.insert(&2, end + 1, "b").unwrap();
        ada.join_delta(&update);
        assert_eq!(ada.chars(), 2 * (n + 1));
    }
    assert_eq!(ada.to_string(), "ab".repeat(1_500));
    assert_eq!(ada, bob);
}

#[test]
fn a_text_written_in_too_many_places_says_so() {
    let bunch = |counter: u64| ((1_u8, counter), (None::<u8>, 0_u8));
    let bunches: Vec<_> = (1..=u64::try_from(BUNCHES_MAX).unwrap()).map(bunch).collect();
    let (runs, nothing) = (Vec::<u8>::new(), Vec::<u8>::new());
    let seen = vec![(1_u8, BUNCHES_MAX, nothing)];
    let bytes = postcard::to_stdvec(&((bunches, runs), seen)).unwrap();
    let mut doc: Doc = postcard::from_bytes(&bytes).unwrap();
    let refused = doc.insert(&1, 0, "x").unwrap_err();
    assert_eq!(refused, TextError::TooManyBunches { bunches: BUNCHES_MAX });
}
