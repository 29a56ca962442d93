local done = 0
for i, entry in ipairs(KEYS) do
  local value = read(entry)
  local at = value and value:byte(1) == ENTRY and find_hold(value, ARGV[1] .. ARGV[i + 1])
  if at then
    local left = string.char(value:byte(HEAD + 1) - 1)
    local rest = value:sub(HEAD + 2, at - 1) .. value:sub(at + HOLD)
    redis.call('SET', entry, value:sub(1, HEAD) .. left .. rest, 'KEEPTTL')
    done = done + 1
  end
end
return { 'done', done }
