%% A broadcast to a pg group that has members on three nodes.
-module(bench_broadcast).
-export([listen/1, send/1]).

-define(GROUP, audience).
-define(RELAYS, relays).

%% A node with members only.
listen([Members]) ->
    Listeners = start_listeners(list_to_integer(Members)),
    bench_puppet:ready(atom_to_list(node())),
    bench_puppet:rounds(fun(Broadcasts) ->
        expect(Listeners, Broadcasts),
        bench_puppet:armed(),
        heard(Listeners)
    end).

%% The node that sends; it has members too. How: "members" sends to each member wherever it is,
%% "relays" sends once to each node, where a relay sends to the members there.
send([How, Members, Size | Nodes]) ->
    Listeners = start_listeners(list_to_integer(Members)),
    [pong = net_adm:ping(list_to_atom(Node)) || Node <- Nodes],
    wait_for_members(?GROUP, list_to_integer(Members) * (1 + length(Nodes))),
    wait_for_members(?RELAYS, 1 + length(Nodes)),
    Group = case How of "members" -> ?GROUP; "relays" -> ?RELAYS end,
    Payload = binary:copy(<<"x">>, list_to_integer(Size)),
    bench_puppet:ready(""),
    bench_puppet:rounds(fun(Broadcasts) ->
        expect(Listeners, Broadcasts),
        broadcast(Group, {said, Payload}, Broadcasts),
        heard(Listeners)
    end).

start_listeners(Members) ->
    {ok, _} = pg:start(pg),
    Listeners = [spawn(fun() -> listener() end) || _ <- lists:seq(1, Members)],
    ok = pg:join(?GROUP, Listeners),
    ok = pg:join(?RELAYS, spawn(fun() -> relay() end)),
    Listeners.

wait_for_members(Group, Wanted) ->
    case length(pg:get_members(Group)) of
        Wanted -> ok;
        _ -> timer:sleep(10), wait_for_members(Group, Wanted)
    end.

broadcast(_Group, _Message, 0) -> ok;
broadcast(Group, Message, N) ->
    [Member ! Message || Member <- pg:get_members(Group)],
    broadcast(Group, Message, N - 1).

relay() ->
    receive
        {said, _} = Message ->
            [Member ! Message || Member <- pg:get_local_members(?GROUP)],
            relay()
    end.

expect(Listeners, Broadcasts) ->
    [Listener ! {expect, self(), Broadcasts} || Listener <- Listeners],
    [receive {armed, Listener} -> ok end || Listener <- Listeners],
    ok.

heard(Listeners) ->
    lists:sum([receive {heard, Count} -> Count end || _ <- Listeners]).

listener() ->
    receive
        {expect, Round, Broadcasts} ->
            Round ! {armed, self()},
            Round ! {heard, count(Broadcasts, 0)},
            listener()
    end.

count(0, Seen) -> Seen;
count(Missing, Seen) ->
    receive
        {said, <<_/binary>>} -> count(Missing - 1, Seen + 1)
    end.
