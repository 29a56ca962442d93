local entry, beats = KEYS[1], KEYS[2]
local holder, deadline, revision, token, head, sealed, valid_until, life, name, most = unpack(ARGV)
local pool = KEYS[3]

local why = refused(beats, holder, deadline, revision)
if why then return why end
-- A put that the store runs late may follow the removal of its session.
if now > tonumber(valid_until) then return { 'overdue' } end
local hold = holder .. token
if redis.call('SET', entry, head .. string.char(1) .. hold .. sealed, 'NX', 'PX', life) then
  if pool then
    -- In microseconds, so that two sessions of a millisecond keep their order.
    redis.call('ZADD', pool, string.format('%.0f', time[1] * 1000000 + time[2]), name)
    redis.call('ZREMRANGEBYRANK', pool, 0, -1 - most)
    if redis.call('PTTL', pool) < tonumber(life) then redis.call('PEXPIRE', pool, life) end
  end
  return { 'stored' }
end
local there = redis.call('GET', entry)
if there:byte(1) == NOTE then return { 'gone', there:byte(2), there:sub(3) } end
if there:byte(1) == ENTRY and there:sub(1, HEAD) == head and find_hold(there, hold) then
  return { 'stored' }
end
return { 'taken' }
