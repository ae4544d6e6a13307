%% Unique names of a cluster with Erlang's own global.
-module(bench_global).
-export([stay/0, register/1]).

%% A node that only takes part.
stay() ->
    bench_puppet:ready(atom_to_list(node())),
    bench_puppet:rounds(fun(_) -> 0 end).

%% The node with the one caller. register_name answers when all nodes have the name.
register(Nodes) ->
    [pong = net_adm:ping(list_to_atom(Node)) || Node <- Nodes],
    ok = global:sync(),
    wait_for_mesh([list_to_atom(Node) || Node <- Nodes], length(Nodes)),
    bench_puppet:ready(""),
    bench_puppet:rounds(fun(Names) -> names(make_ref(), Names) end).

%% Each of the others sees this node and the others.
wait_for_mesh(Nodes, Peers) ->
    case [Node || Node <- Nodes, length(rpc:call(Node, erlang, nodes, [])) =/= Peers] of
        [] -> ok;
        _ -> timer:sleep(10), wait_for_mesh(Nodes, Peers)
    end.

%% A process may have one name only; to start one takes a thousandth of what a name does.
names(Round, Names) ->
    [yes = global:register_name({Round, N}, spawn(fun idle/0)) || N <- lists:seq(1, Names)],
    Names.

idle() ->
    receive stop -> ok end.
