%% A broadcast to a pg group that has members on three nodes.
-module(bench_broadcast).
-export([listen/1, send/1]).

-define(GROUP, audience).

%% A node with members only.
listen([Members]) ->
    Listeners = start_listeners(list_to_integer(Members)),
    bench_puppet:ready(atom_to_list(node())),
    bench_puppet:rounds(fun(Broadcasts) ->
        expect(Listeners, Broadcasts),
        bench_puppet:armed(),
        heard(Listeners)
    end).

%% The node that sends; it has members too.
send([Members, Size | Nodes]) ->
    Listeners = start_listeners(list_to_integer(Members)),
    [pong = net_adm:ping(list_to_atom(Node)) || Node <- Nodes],
    wait_for_members(list_to_integer(Members) * (1 + length(Nodes))),
    Payload = binary:copy(<<"x">>, list_to_integer(Size)),
    bench_puppet:ready(""),
    bench_puppet:rounds(fun(Broadcasts) ->
        expect(Listeners, Broadcasts),
        broadcast(Payload, Broadcasts),
        heard(Listeners)
    end).

start_listeners(Members) ->
    {ok, _} = pg:start(pg),
    Listeners = [spawn(fun() -> listener() end) || _ <- lists:seq(1, Members)],
    ok = pg:join(?GROUP, Listeners),
    Listeners.

wait_for_members(Wanted) ->
    case length(pg:get_members(?GROUP)) of
        Wanted -> ok;
        _ -> timer:sleep(10), wait_for_members(Wanted)
    end.

broadcast(_Payload, 0) -> ok;
broadcast(Payload, N) ->
    [Member ! {said, Payload} || Member <- pg:get_members(?GROUP)],
    broadcast(Payload, N - 1).

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
