local list, known, most = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local all = redis.call('HGETALL', list)
local count = 0
for i = 1, #all, 2 do
  if all[i] ~= 'v' then
    local ends = tonumber(all[i + 1]:match('^(%d+):') or '0')
    if ends < now then redis.call('HDEL', list, all[i]) else count = count + 1 end
  end
end
local new = 0
for i = 3, #ARGV, 2 do
  if not redis.call('HGET', list, ARGV[i]) then new = new + 1 end
end
if count + new > most then return { 'many' } end
for i = 3, #ARGV, 2 do redis.call('HSET', list, ARGV[i], ARGV[i + 1]) end
local version = tonumber(redis.call('HGET', list, 'v') or '0')
-- The time, so that a list that was restored from a file never has the version of a later one.
if new > 0 then version = math.max(version + 1, now) end
version = string.format('%.0f', math.max(version, known))
redis.call('HSET', list, 'v', version)
return { 'revocations', version }
