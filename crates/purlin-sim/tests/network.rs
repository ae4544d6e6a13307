//! The simulated network, clocks and disks by themselves: hosts without nodes.
#![expect(clippy::unwrap_used, reason = "a simulation that cannot go on should fail loudly")]

use std::{
    future::poll_fn,
    io::{self, ErrorKind},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use purlin::Environment;
use purlin_net::{Listening, Stream, StreamSocket};
use purlin_sim::{Failure, World, ms, secs};
use purlin_store::disk;

type Socket = Box<dyn StreamSocket>;
/// What a host wrote down, with the moment on its own clock.
type Log = Arc<Mutex<Vec<(Duration, String)>>>;

fn socket(stream: Stream) -> Socket {
    match stream {
        Stream::Other(socket) => socket,
        Stream::Tcp(_) => panic!("the operating system's network in a simulation"),
    }
}

async fn read(socket: &Socket) -> io::Result<String> {
    poll_fn(|cx| socket.poll_readable(cx)).await?;
    let mut buffer = [0; 1024];
    let size = socket.try_read(&mut buffer)?;
    Ok(String::from_utf8(buffer[..size].to_vec()).unwrap())
}

fn here(world: &World, name: &str) -> SocketAddr {
    world.addr(name)
}

async fn listen(env: &Environment, addr: SocketAddr) -> Listening {
    env.network.listen(addr).await.unwrap()
}

fn now(env: &Environment) -> Duration {
    env.clock.now().since_start()
}

/// Writes down every datagram that arrives on `name`.
fn hear_datagrams(world: &mut World, name: &str) -> Log {
    let (log, addr) = (Log::default(), here(world, name));
    let into = Arc::clone(&log);
    world.spawn_bare(name, async move |env| {
        let port = listen(&env, addr).await;
        let mut buffer = [0; 100];
        loop {
            let next = poll_fn(|cx| port.datagrams.poll_recv_from(cx, &mut buffer)).await;
            let (size, _) = next.unwrap();
            let text = String::from_utf8(buffer[..size].to_vec()).unwrap();
            into.lock().push((now(&env), text));
        }
    });
    log
}

/// Writes down every piece of every stream that arrives on `name`, and how each ends.
fn hear_streams(world: &mut World, name: &str) -> Log {
    let (log, addr) = (Log::default(), here(world, name));
    let into = Arc::clone(&log);
    world.spawn_bare(name, async move |env| {
        let mut port = listen(&env, addr).await;
        let env = Arc::new(env);
        while let Ok((stream, _)) = port.streams.accept().await {
            let (env, into, socket) = (Arc::clone(&env), Arc::clone(&into), socket(stream));
            tokio::spawn(async move {
                loop {
                    let heard = match read(&socket).await {
                        Ok(text) if text.is_empty() => "(end)".to_owned(),
                        Ok(text) => text,
                        Err(error) => format!("({:?})", error.kind()),
                    };
                    let is_over = heard.starts_with('(');
                    into.lock().push((now(&env), heard));
                    if is_over {
                        return;
                    }
                }
            });
        }
    });
    log
}

fn texts(log: &Log) -> Vec<String> {
    log.lock().iter().map(|(_, text)| text.clone()).collect()
}

fn two(seed: u64) -> World {
    let mut world = World::builder(seed).latency(ms(2), ms(5)).build();
    world.start_bare("a").start_bare("b");
    world
}

/// Sends `count` numbered datagrams from `a` to `b`, one each millisecond.
fn send_datagrams(world: &mut World, count: usize) -> Result<(), Failure> {
    let (from, to) = (here(world, "a"), here(world, "b"));
    world.on_bare("a", async move |env| {
        let port = listen(&env, from).await;
        for n in 0..count {
            port.datagrams.try_send_to(format!("{n}").as_bytes(), to).unwrap();
            tokio::time::sleep(ms(1)).await;
        }
    })
}

#[test]
fn a_datagram_takes_as_long_as_the_network_says() -> Result<(), Failure> {
    let mut world = two(1);
    let log = hear_datagrams(&mut world, "b");
    world.run_for(ms(2))?;
    let sent_at = world.now();
    send_datagrams(&mut world, 1)?;
    world.run_for(ms(20))?;
    let took = log.lock()[0].0 - sent_at;
    assert!((ms(2)..=ms(6)).contains(&took), "{took:?}");
    Ok(())
}

#[test]
fn datagrams_are_lost_doubled_and_overtaken_when_the_network_says_so() -> Result<(), Failure> {
    let mut world = two(2);
    let log = hear_datagrams(&mut world, "b");
    world.run_for(ms(2))?;
    send_datagrams(&mut world, 400)?;
    world.run_for(ms(50))?;
    let all = texts(&log);
    assert_eq!(all.len(), 400);
    log.lock().clear();
    world.loss(0.25).duplicate(0.25).delay(ms(10), ms(50));
    send_datagrams(&mut world, 400)?;
    world.run_for(ms(200))?;
    let heard: Vec<usize> = texts(&log).iter().map(|text| text.parse().unwrap()).collect();
    let mut distinct = heard.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert!((250..350).contains(&distinct.len()), "{} of 400 arrived", distinct.len());
    assert!(heard.len() > distinct.len() + 40, "too few doubled: {}", heard.len());
    assert!(!heard.is_sorted(), "none was overtaken");
    Ok(())
}

/// Opens a stream from `a` to `b` and says `words` on it, one every 10 ms, then ends it.
fn say(world: &mut World, words: &'static [&'static str]) {
    let to = here(world, "b");
    world.spawn_bare("a", async move |env| {
        let Ok(stream) = env.network.connect(to).await else { return };
        let socket = socket(stream);
        for word in words {
            if socket.try_write(word.as_bytes()).is_err() {
                return;
            }
            tokio::time::sleep(ms(10)).await;
        }
    });
}

#[test]
fn a_stream_is_in_order_and_complete_however_bad_the_network_is() -> Result<(), Failure> {
    let mut world = two(3);
    let log = hear_streams(&mut world, "b");
    world.loss(0.4).delay(ms(5), ms(40));
    say(&mut world, &["one ", "two ", "three ", "four ", "five ", "six "]);
    world.run_for(secs(60))?;
    let heard = texts(&log);
    assert_eq!(heard.last().unwrap(), "(end)");
    assert_eq!(heard[..heard.len() - 1].concat(), "one two three four five six ");
    let stalls = world.with_trace(|trace| trace.text().matches("stalled").count());
    assert!(stalls > 0, "nothing was lost: the test shows nothing");
    Ok(())
}

#[test]
fn what_a_cut_held_up_arrives_after_the_heal() -> Result<(), Failure> {
    let mut world = two(4);
    let log = hear_streams(&mut world, "b");
    say(&mut world, &["one ", "two ", "three ", "four "]);
    world.run_for(ms(18))?;
    world.partition(["a"], ["b"]).run_for(secs(5))?;
    let during = texts(&log).concat();
    assert!(!during.contains("four") && !during.contains("(end)"), "{during}");
    world.heal().run_for(secs(10))?;
    assert_eq!(texts(&log).concat(), "one two three four (end)");
    Ok(())
}

#[test]
fn a_cut_that_lasts_breaks_a_stream_at_the_side_that_sends() -> Result<(), Failure> {
    let mut world = two(5);
    let log = hear_streams(&mut world, "b");
    let to = here(&world, "b");
    world.run_for(ms(4))?;
    let socket =
        world.on_bare("a", async move |env| socket(env.network.connect(to).await.unwrap()))?;
    let socket = Arc::new(socket);
    world.cut_one_way("a", "b");
    let sending = Arc::clone(&socket);
    let error = world.on_bare("a", async move |env| {
        sending.try_write(b"lost").unwrap();
        let started = now(&env);
        let error = read(&sending).await.unwrap_err();
        (error.kind(), now(&env) - started)
    })?;
    assert_eq!(error.0, ErrorKind::TimedOut);
    assert!(error.1 >= secs(15), "{:?}", error.1);
    assert_eq!(texts(&log), Vec::<String>::new(), "the other side knows of nothing");
    Ok(())
}

#[test]
fn a_cut_of_the_way_back_alone_breaks_the_sender_too() -> Result<(), Failure> {
    let mut world = two(6);
    let log = hear_streams(&mut world, "b");
    let to = here(&world, "b");
    world.run_for(ms(4))?;
    let socket =
        world.on_bare("a", async move |env| socket(env.network.connect(to).await.unwrap()))?;
    world.cut_one_way("b", "a");
    let error = world.on_bare("a", async move |_env| {
        socket.try_write(b"heard, but who knows").unwrap();
        read(&socket).await.unwrap_err().kind()
    })?;
    assert_eq!(error, ErrorKind::TimedOut);
    assert_eq!(texts(&log)[0], "heard, but who knows");
    Ok(())
}

#[test]
fn a_killed_process_resets_or_ends_its_streams_and_a_lost_machine_says_nothing()
-> Result<(), Failure> {
    for power in [false, true] {
        let mut world = two(7);
        let log = hear_streams(&mut world, "b");
        let to = here(&world, "b");
        world.run_for(ms(4))?;
        world.spawn_bare("a", async move |env| {
            let socket = socket(env.network.connect(to).await.unwrap());
            socket.try_write(b"hello").unwrap();
            std::future::pending::<()>().await;
            drop(socket);
        });
        world.run_for(ms(50))?;
        if power {
            world.power_off("a")
        } else {
            world.crash("a")
        };
        world.run_for(secs(30))?;
        let wanted: &[&str] = if power { &["hello"] } else { &["hello", "(end)"] };
        assert_eq!(texts(&log), wanted);
    }
    Ok(())
}

#[test]
fn dialling_is_refused_by_a_machine_without_listener_and_unanswered_without_a_machine()
-> Result<(), Failure> {
    let mut world = two(8);
    let to = here(&world, "b");
    let dial = move |world: &mut World| {
        world.on_bare("a", async move |env| {
            let dialled = tokio::time::timeout(secs(5), env.network.connect(to)).await;
            dialled.ok().map(|dialled| dialled.map(drop).map_err(|error| error.kind()))
        })
    };
    assert_eq!(dial(&mut world)?, Some(Err(ErrorKind::ConnectionRefused)));
    world.power_off("b");
    assert_eq!(dial(&mut world)?, None);
    Ok(())
}

#[test]
fn a_slow_reader_makes_the_writer_wait_and_loses_nothing() -> Result<(), Failure> {
    let mut world = two(9);
    let (addr, received) = (here(&world, "b"), Arc::new(Mutex::new(0_usize)));
    let into = Arc::clone(&received);
    world.spawn_bare("b", async move |env| {
        let mut port = listen(&env, addr).await;
        let (stream, _) = port.streams.accept().await.unwrap();
        let socket = socket(stream);
        tokio::time::sleep(secs(1)).await;
        let mut buffer = vec![0; 10_000];
        loop {
            poll_fn(|cx| socket.poll_readable(cx)).await.unwrap();
            match socket.try_read(&mut buffer).unwrap() {
                0 => return,
                size => *into.lock() += size,
            }
            tokio::time::sleep(ms(1)).await;
        }
    });
    world.run_for(ms(4))?;
    let blocked = world.on_bare("a", async move |env| {
        let socket = socket(env.network.connect(addr).await.unwrap());
        let (mut left, mut blocked) = (3_000_000, 0);
        while left > 0 {
            match socket.try_write(&vec![7; left]) {
                Ok(size) => left -= size,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    blocked += 1;
                    poll_fn(|cx| socket.poll_writable(cx)).await.unwrap();
                }
                Err(error) => panic!("{error}"),
            }
        }
        blocked
    })?;
    assert!(blocked > 3, "the writer never had to wait");
    world.run_for(secs(5))?;
    assert_eq!(*received.lock(), 3_000_000);
    Ok(())
}

#[test]
fn a_paused_host_misses_its_timers_and_gets_its_messages_afterwards() -> Result<(), Failure> {
    let mut world = two(10);
    let log = hear_datagrams(&mut world, "b");
    let ticks: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let into = Arc::clone(&ticks);
    world.spawn_bare("b", async move |env| {
        loop {
            tokio::time::sleep(ms(100)).await;
            into.lock().push(now(&env));
        }
    });
    world.run_for(ms(250))?;
    world.pause("b", secs(2));
    send_datagrams(&mut world, 3)?;
    world.run_for(secs(1))?;
    assert_eq!((ticks.lock().len(), texts(&log).len()), (2, 0));
    world.run_for(secs(2))?;
    assert_eq!(texts(&log).len(), 3);
    let ticks = ticks.lock();
    assert!(ticks[2] >= ms(2250), "it ran while it was paused: {ticks:?}");
    assert!(ticks.len() < 15, "missed timers fire once: {ticks:?}");
    Ok(())
}

#[test]
fn a_slow_host_runs_now_and_then() -> Result<(), Failure> {
    let mut world = two(11);
    let ticks: Arc<Mutex<usize>> = Arc::default();
    let into = Arc::clone(&ticks);
    world.spawn_bare("b", async move |_env| {
        loop {
            tokio::time::sleep(ms(10)).await;
            *into.lock() += 1;
        }
    });
    world.slow("b", ms(200)).run_for(secs(2))?;
    assert!((8..=12).contains(&*ticks.lock()), "{}", ticks.lock());
    Ok(())
}

#[test]
fn a_wall_clock_is_as_wrong_as_it_is_told_and_the_other_clock_is_right() -> Result<(), Failure> {
    let mut world = two(12);
    world.skew("a", secs(3)).jump_clock("b", -60_000).run_for(secs(1))?;
    let read = |world: &mut World, name: &str| {
        world.on_bare(name, async |env| (env.clock.now(), env.clock.wall().as_millis()))
    };
    let ((a_now, a_wall), (b_now, b_wall)) = (read(&mut world, "a")?, read(&mut world, "b")?);
    assert!(b_now - a_now < ms(10), "{a_now:?} {b_now:?}");
    assert!((62_990..=63_010).contains(&(a_wall - b_wall)), "{a_wall} {b_wall}");
    Ok(())
}

#[test]
fn a_disk_outlives_the_process_keeps_what_was_flushed_and_may_lose_the_rest() -> Result<(), Failure>
{
    let mut world = two(13);
    let (dir, path) = (Path::new("/data"), Path::new("/data/file"));
    world.on_bare("a", async move |env| {
        env.disk.create_dir(dir).unwrap();
        disk::replace(&*env.disk, path, b"flushed").unwrap();
        let file = env.disk.open(path, false).unwrap();
        file.write_all_at(b"FLUSHED, and more that is not", 0).unwrap();
    })?;
    world.crash("a").restart("a")?;
    let read = |world: &mut World| {
        world.on_bare("a", async move |env| disk::read(&*env.disk, path).unwrap())
    };
    assert_eq!(read(&mut world)?.unwrap(), b"FLUSHED, and more that is not");
    world.power_off("a").restart("a")?;
    assert!(!read(&mut world)?.unwrap().is_empty(), "what was flushed is there in some form");
    world.lose_disk("a").restart("a")?;
    assert_eq!(read(&mut world)?, None);
    world.fill_disk("a");
    let full = world.on_bare("a", async move |env| {
        env.disk.open(path, true).and_then(|file| file.write_all_at(b"x", 0))
    })?;
    assert_eq!(full.unwrap_err().kind(), ErrorKind::StorageFull);
    Ok(())
}

#[test]
fn an_invariant_that_breaks_and_a_wait_that_is_too_long_say_what_was_seen() {
    let mut world = two(14);
    let failure = world.until(("pigs to fly", |_: &World| Err("they walk".to_owned())), ms(50));
    let failure = failure.unwrap_err();
    assert_eq!(failure.what(), "waited 50ms for pigs to fly: they walk");
    assert!(failure.to_string().contains("replay: World::new(14)"), "{failure}");
    world.always("it is early", |world| match world.now() {
        now if now < ms(100) => Ok(()),
        now => Err(format!("it is {now:?}")),
    });
    let failure = world.run_for(secs(1)).unwrap_err();
    assert_eq!(failure.what(), "it must always hold that it is early: it is 100ms");
}

#[test]
fn a_panic_in_a_task_is_a_failure_unless_it_is_expected() {
    let crash = |mut world: World| {
        world.start_bare("a");
        world.spawn_bare("a", async |_env| panic!("as planned"));
        world.run_for(ms(10)).map(drop)
    };
    let failure = crash(World::new(15)).unwrap_err();
    assert!(failure.what().contains("as planned"), "{failure}");
    assert!(crash(World::builder(15).tolerate_panics().build()).is_ok());
}

#[test]
#[should_panic(expected = "no host is called \"z\"; there are [\"a\", \"b\"]")]
fn a_scenario_that_names_a_host_that_is_none_is_told_so() {
    two(16).isolate("a").cut_one_way("a", "z");
}
