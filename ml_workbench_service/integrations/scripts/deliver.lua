-- Hands entries to the one consumer of a group: its pending ones from a cursor on, or new ones. Of the new ones it
-- counts on the way what is too old (expired) and what was requeued for another group (acked, unseen); a pending one
-- may have been applied already, so it is handed out whatever its age.
-- KEYS: stream.
-- ARGV: group, owner and term of its lease (owner '': none), consumer, cursor ('>': new entries), count, age in ms after
--       which entries are expired (0: never).
-- Answer: {{id, fields, times delivered} …}, the group's last delivered id, how many were read from the stream,
--         the last id read ('' where none was).

local stream = KEYS[1]
local name, owner, term, consumer, cursor = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local ttl = tonumber(ARGV[7])
if not holds(stream, name, owner, term, true) then return LOST end
local group = group_of(stream, name)
if not group then return {err = 'NOGROUP the consumer group is gone'} end

local answer = redis.call('XREADGROUP', 'GROUP', name, consumer, 'COUNT', ARGV[6], 'STREAMS', stream, cursor)
local entries = answer and answer[1] and answer[1][2] or {}
local handed, groups, now, last = {}, nil, nil, ''

local function count(id, fields, counter)
  groups = groups or groups_of(stream)
  redis.call('XACK', stream, name, id)
  redis.call('HINCRBY', stream .. ':books:' .. name, counter, 1)
  if counter == 'expired' then count_symbol(stream, name, counter, fields) end
  if not needed_by_others(stream, groups, name, id) then redis.call('XDEL', stream, id) end
end

for _, entry in ipairs(entries) do
  local id, fields = entry[1], entry[2] or {}
  local only = field_of(fields, 'requeued_for')
  last = id
  if ttl > 0 then now = now or now_ms() end
  local is_new = cursor == '>'
  if is_new and only and only ~= name then
    count(id, fields, 'acked')
  elseif is_new and ttl > 0 and age_ms(id, now) > ttl then
    count(id, fields, 'expired')
  else
    local times = 1
    if not is_new then
      local pending = redis.call('XPENDING', stream, name, id, id, 1)[1]
      times = pending and pending[4] or 1
    end
    handed[#handed + 1] = {id, fields, times}
  end
end
return {handed, group.last_delivered, #entries, last}
