-- Appends an agent's decisions, each once: those at or before the last decided entry were written before a crash.
-- KEYS: decisions stream, the agent's last decided entry id.
-- ARGV: length to keep, agent, then per decision: entry id, prediction_id, decision.
-- Answer: how many were new (always the last ones, since entry ids only grow).

local stream, key = KEYS[1], KEYS[2]
local last = redis.call('GET', key) or '0-0'
local written = 0

for i = 3, #ARGV, 3 do
  if later(ARGV[i], last) then
    redis.call('XADD', stream, 'MAXLEN', '~', ARGV[1], '*', 'decision', ARGV[i + 2], 'agent_id', ARGV[2],
               'prediction_id', ARGV[i + 1])
    last, written = ARGV[i], written + 1
  end
end

if written > 0 then redis.call('SET', key, last) end
return written
