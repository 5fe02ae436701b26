-- Makes a group at the stream's beginning where it is missing; its books open with the stream's present length.
-- KEYS: stream. ARGV: group, prefix of the books. Answer: 1 where it was made.

for _, group in ipairs(groups_of(KEYS[1])) do
  if group.name == ARGV[1] then return 0 end
end
redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
local key = ARGV[2] .. ARGV[1]
redis.call('DEL', key)
redis.call('HSET', key, 'enqueued', redis.call('XLEN', KEYS[1]))
return 1
