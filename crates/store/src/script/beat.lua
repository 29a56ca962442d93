local beats = KEYS[1]
local holder, life, expected, valid_until = unpack(ARGV)
local own = redis.call('HGET', beats, holder) or ''
local revision = redis.call('HGET', beats, 'r') or '0'
if now > tonumber(valid_until) then return { 'overdue', now, revision } end
if expected ~= '*' and own ~= expected then return { 'lost', now, revision } end
local deadline = string.format('%.0f', now + life)
-- Neither a replica nor a file gets heartbeats: a store that takes over, or that was restored, has
-- none of those that it may have missed removals before.
redis.set_repl(redis.REPL_NONE)
redis.call('HSET', beats, holder, deadline)
return { 'beaten', now, deadline, revision }
