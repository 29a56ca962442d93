local current = tonumber(redis.call('HGET', KEYS[1], 'r') or '0')
if current < tonumber(ARGV[1]) then
  redis.call('HSET', KEYS[1], 'r', ARGV[1])
  return { 'done', 1 }
end
return { 'done', 0 }
