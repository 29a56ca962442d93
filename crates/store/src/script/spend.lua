local ring, spent = KEYS[1], KEYS[2]
local known, mark, handle, spends, life = unpack(ARGV)
-- The daemon must know the ring that the store has: one that the store has lost had other tickets.
local held = redis.call('HGET', ring, 's') or ''
if (redis.call('HGET', ring, 'v') or '0') ~= known or held:sub(1, #mark) ~= mark then
  return { 'behind' }
end
-- The spent tickets are a sorted set by the ends of the tickets, with a member of no ticket. If it is lost, the
-- ring goes too: then the daemons give back a ring that opens no ticket from before.
if redis.call('HGET', ring, 'g') and not redis.call('ZSCORE', spent, '') then
  redis.call('DEL', ring)
  return { 'behind' }
end
if tonumber(redis.call('ZSCORE', spent, handle) or '0') > now then return { 'taken' } end
if spends == '1' then
  redis.call('HSET', ring, 'g', '1')
  redis.call('ZREMRANGEBYSCORE', spent, '-inf', string.format('%.0f', now))
  redis.call('ZADD', spent, 'inf', '', string.format('%.0f', now + tonumber(life)), handle)
  -- The check of a store has no ring, and leaves nothing.
  if known == '0' then
    redis.call('PEXPIRE', ring, life)
    redis.call('PEXPIRE', spent, life)
  end
end
return { 'stored' }
