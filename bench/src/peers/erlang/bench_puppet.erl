%% The Erlang end of the line protocol (rig.rs): does rounds on request until stdin ends.
-module(bench_puppet).
-export([ready/1, rounds/1, armed/0]).

ready(Info) ->
    say("ready ~s", [Info]).

armed() ->
    say("armed", []).

%% Round is a fun of the number of operations that returns how many were seen to be done. Each
%% round runs in a process of its own: this one serves stdin and has a used heap.
rounds(Round) ->
    case io:get_line("") of
        "round " ++ Rest ->
            Operations = list_to_integer(string:trim(Rest)),
            {_, Monitor} = spawn_monitor(fun() -> exit({done, Round(Operations)}) end),
            receive
                {'DOWN', Monitor, process, _, {done, Count}} -> say("done ~b", [Count]);
                {'DOWN', Monitor, process, _, Reason} -> say("failed ~0p", [Reason])
            end,
            rounds(Round);
        _ ->
            erlang:halt(0, [{flush, false}])
    end.

say(Format, Arguments) ->
    io:put_chars([io_lib:format(Format, Arguments), $\n]).
