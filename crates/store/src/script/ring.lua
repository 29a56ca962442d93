local ring, daemon = KEYS[1], ARGV[1]
local lease, known, mark, version, restores, sealed = unpack(ARGV, 2)
lease, known, version = tonumber(lease), tonumber(known), tonumber(version)

-- The daemons that look after the ring: when each looked last, and which version it knows.
redis.call('HSET', ring, 'd' .. daemon, string.format('%.0f:%.0f', now, known))
local alive, least = {}, known
local all = redis.call('HGETALL', ring)
for i = 1, #all, 2 do
  if all[i]:sub(1, 1) == 'd' then
    local at, knows = all[i + 1]:match('^(%d+):(%d+)$')
    if at and tonumber(at) > now - lease then
      table.insert(alive, all[i]:sub(2))
      least = math.min(least, tonumber(knows))
    else
      redis.call('HDEL', ring, all[i])
    end
  end
end

-- One of them rotates it.
local leader = redis.call('HGET', ring, 'l')
local ends = tonumber(redis.call('HGET', ring, 'e') or '0')
local leads = 0
if not leader or leader == daemon or ends <= now then
  redis.call('HSET', ring, 'l', daemon, 'e', string.format('%.0f', now + lease))
  leads = 1
end

-- A write follows the version that its daemon knows. One that gives back what the store has lost may be of
-- any later version. A value begins with bytes that no other value has, so they tell two values of one
-- version apart.
local current = tonumber(redis.call('HGET', ring, 'v') or '0') or 0
local held = redis.call('HGET', ring, 's') or ''
local is_known = current == known and held:sub(1, #mark) == mark
local written = 0
if version > current and (restores == '1' or (is_known and version == current + 1)) then
  redis.call('HSET', ring, 'v', string.format('%.0f', version), 's', sealed)
  current, is_known, written = version, true, 1
end
-- A ring that was written has no expiry: the store must not evict it while it keeps others. A ring that was not
-- is forgotten.
redis.call('PERSIST', ring)
if current == 0 then redis.call('PEXPIRE', ring, lease) end
local shown = string.format('%.0f', current)
return { 'ring', now, shown, leads, written, string.format('%.0f', least), is_known and '' or held, unpack(alive) }
