local pool, most = KEYS[1], tonumber(ARGV[1])
for i = 2, #ARGV do redis.call('ZREM', pool, ARGV[i]) end
local names = redis.call('ZREVRANGE', pool, 0, most - 1)
table.insert(names, 1, 'names')
return names
