%% Calls and casts to a gen_server, on this node and on another.
-module(bench_calls).
-export([local_call/0, local_cast/0, serve/0, remote_call/1, remote_cast/1]).

-define(PAYLOAD, <<7:128>>).

local_call() ->
    Adder = bench_adder:start(),
    bench_puppet:ready(""),
    bench_puppet:rounds(counted(Adder, fun(Calls) -> add(Adder, Calls) end)).

local_cast() ->
    Adder = bench_adder:start(),
    bench_puppet:ready(""),
    bench_puppet:rounds(counted(Adder, fun(Casts) -> cast_add(Adder, Casts) end)).

%% Only serves; its node name is what the client needs.
serve() ->
    bench_adder:start(),
    bench_puppet:ready(atom_to_list(node())),
    bench_puppet:rounds(fun(_) -> 0 end).

remote_call([Node, Callers]) ->
    Adder = find(Node),
    bench_puppet:ready(""),
    bench_puppet:rounds(counted(Adder, fun(Calls) -> call(Adder, list_to_integer(Callers), Calls) end)).

remote_cast([Node]) ->
    Adder = find(Node),
    bench_puppet:ready(""),
    bench_puppet:rounds(counted(Adder, fun(Casts) -> cast_count(Adder, Casts) end)).

%% The pid itself: no name is looked up per message.
find(Node) ->
    gen_server:call({bench_adder, list_to_atom(Node)}, pid).

%% What the server saw is what counts, not what was sent.
counted(Adder, Work) ->
    fun(Operations) ->
        Before = gen_server:call(Adder, total, infinity),
        Work(Operations),
        gen_server:call(Adder, total, infinity) - Before
    end.

add(_Adder, 0) -> ok;
add(Adder, N) ->
    gen_server:call(Adder, {add, 1}),
    add(Adder, N - 1).

cast_add(_Adder, 0) -> ok;
cast_add(Adder, N) ->
    gen_server:cast(Adder, {add, 1}),
    cast_add(Adder, N - 1).

cast_count(_Adder, 0) -> ok;
cast_count(Adder, N) ->
    gen_server:cast(Adder, {count, ?PAYLOAD}),
    cast_count(Adder, N - 1).

call(Adder, 1, Calls) ->
    echo(Adder, Calls);
call(Adder, Callers, Calls) ->
    Each = Calls div Callers,
    Monitors = [element(2, spawn_monitor(fun() -> echo(Adder, Each) end)) || _ <- lists:seq(1, Callers)],
    [receive {'DOWN', Monitor, process, _, normal} -> ok end || Monitor <- Monitors],
    ok.

echo(_Adder, 0) -> ok;
echo(Adder, N) ->
    gen_server:call(Adder, {echo, ?PAYLOAD}),
    echo(Adder, N - 1).
