-- Puts a dead letter back into the stream, for the group that gave it up and for no other, and deletes the letter.
-- KEYS: stream. ARGV: id of the dead letter, capacity.
-- Answer: {'ok', new id, group}, {'missing'}, {'full'} or {'no group', name}.

local stream, dead = KEYS[1], KEYS[1] .. ':dead'
local letter = redis.call('XRANGE', dead, ARGV[1], ARGV[1])[1]
if not letter then return {'missing'} end
local fields, kept = letter[2], {}
local name = field_of(fields, 'group') or ''
local groups = groups_of(stream)
local found, in_hand = false, 0
for _, group in ipairs(groups) do
  found, in_hand = found or group.name == name, math.max(in_hand, group.pending)
end
if not found then return {'no group', name} end
if redis.call('XLEN', stream) - in_hand >= tonumber(ARGV[2]) then return {'full'} end
for i = 7, #fields, 2 do  -- after entry_id, group and reason
  if fields[i] ~= 'requeued_for' then
    kept[#kept + 1], kept[#kept + 2] = fields[i], fields[i + 1]
  end
end
kept[#kept + 1], kept[#kept + 2] = 'requeued_for', name
local id = redis.call('XADD', stream, '*', unpack(kept))
for _, group in ipairs(groups) do redis.call('HINCRBY', stream .. ':books:' .. group.name, 'enqueued', 1) end
redis.call('XDEL', dead, ARGV[1])
return {'ok', id, name}
