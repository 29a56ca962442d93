local all = redis.call('HGETALL', KEYS[1])
local answer = { 'revocations', '0' }
for i = 1, #all, 2 do
  if all[i] == 'v' then
    answer[2] = all[i + 1]
  else
    table.insert(answer, all[i])
    table.insert(answer, all[i + 1])
  end
end
return answer
