local beats = KEYS[1]
local holder, life, expected, valid_until = unpack(ARGV)
local own = redis.call('HGET', beats, holder) or ''
local revision = redis.call('HGET', beats, 'r') or '0'
if now > tonumber(valid_until) then return { 'overdue', now, revision } end
if expected ~= '*' and own ~= expected then return { 'lost', now, revision } end
if expected == '*' then
  -- The first heartbeat of a life clears away those of lives that ended an hour ago.
  local all = redis.call('HGETALL', beats)
  for i = 1, #all, 2 do
    if #all[i] == 8 and tonumber(all[i + 1]) < now - 3600000 then
      redis.call('HDEL', beats, all[i])
    end
  end
end
local deadline = string.format('%.0f', now + life)
-- Neither a replica nor an append-only file gets heartbeats: a store that takes over, or that was
-- restored from one, has none of those that it may have missed removals before. A snapshot has them,
-- so the run id of the server decides too.
redis.set_repl(redis.REPL_NONE)
redis.call('HSET', beats, holder, deadline)
return { 'beaten', now, deadline, revision }
